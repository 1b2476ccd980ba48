//! The AWS query protocol for EC2 and SNS: a form in, XML out.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use aws_smithy_types::body::SdkBody;

/// The longest list in a call: a bound for the parser, not a limit of AWS.
const LIST_MAX: usize = 10_000;

/// The parameters of one call.
#[derive(Debug, Clone)]
pub(super) struct Form(BTreeMap<String, String>);

impl Form {
    pub(super) fn parse(body: &[u8]) -> Self {
        Self(form_urlencoded::parse(body).into_owned().collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(super) fn action(&self) -> &str {
        self.get("Action").unwrap_or_default()
    }

    pub(super) fn is_true(&self, name: &str) -> bool {
        self.get(name) == Some("true")
    }

    /// Returns the values of `name.1`, `name.2`, and so on.
    pub(super) fn list(&self, name: &str) -> Vec<String> {
        self.indexes(name).iter().filter_map(|prefix| self.get(prefix)).map(str::to_owned).collect()
    }

    /// Returns the prefixes `name.1`, `name.2`, … that occur, in their order.
    pub(super) fn indexes(&self, name: &str) -> Vec<String> {
        (1..=LIST_MAX)
            .map(|index| format!("{name}.{index}"))
            .take_while(|prefix| self.0.keys().any(|key| key == prefix || key.starts_with(&format!("{prefix}."))))
            .collect()
    }

    /// Returns the `Key` and `Value` pairs below `name.1`, `name.2`, and so on.
    pub(super) fn tags(&self, name: &str) -> Vec<(String, String)> {
        self.indexes(name)
            .iter()
            .filter_map(|tag| {
                let key = self.get(&format!("{tag}.Key"))?;
                Some((key.to_owned(), self.get(&format!("{tag}.Value")).unwrap_or_default().to_owned()))
            })
            .collect()
    }

    /// Returns all parameters except `name`, sorted, so that equal calls compare as equal.
    pub(super) fn without(&self, name: &str) -> BTreeMap<String, String> {
        let mut all = self.0.clone();
        all.remove(name);
        all
    }
}

/// Builds XML and escapes text.
#[derive(Debug, Default)]
pub(super) struct Xml(String);

impl Xml {
    pub(super) fn field(&mut self, name: &str, text: impl std::fmt::Display) -> &mut Self {
        let text = text.to_string();
        self.0.push('<');
        self.0.push_str(name);
        self.0.push('>');
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                c if c.is_control() => {
                    // A raw line break or tab would be normalised away by the reader.
                    write!(self.0, "&#{};", u32::from(c)).expect("writing to a String cannot fail");
                }
                c => self.0.push(c),
            }
        }
        self.end(name)
    }

    pub(super) fn element(&mut self, name: &str, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.0.push('<');
        self.0.push_str(name);
        self.0.push('>');
        fill(self);
        self.end(name)
    }

    /// Wraps the content in a root element.
    pub(super) fn root(mut self, name: &str, namespace: &str) -> String {
        self.0.insert_str(0, &format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?><{name} xmlns=\"{namespace}\">"));
        self.end(name);
        self.0
    }

    fn end(&mut self, name: &str) -> &mut Self {
        self.0.push_str("</");
        self.0.push_str(name);
        self.0.push('>');
        self
    }
}

/// Builds an answer whose whole body is in memory.
pub(super) fn reply(status: u16, content_type: &'static str, body: impl Into<SdkBody>) -> http::Response<SdkBody> {
    let mut response = http::Response::new(body.into());
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

/// Returns an identifier like those of AWS for requests and messages.
pub(super) fn fresh_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_with_its_lists_and_tags() {
        let form = Form::parse(
            b"Action=X&InstanceId.1=i-1&InstanceId.2=i-2&DryRun=true&\
              Tag.1.Key=srcID&Tag.1.Value=a+b%2Bc%26&Tag.2.Key=k",
        );

        assert_eq!(form.action(), "X");
        assert_eq!(form.list("InstanceId"), ["i-1", "i-2"]);
        assert_eq!(form.tags("Tag"), [("srcID".into(), "a b+c&".into()), ("k".into(), String::new())]);
        assert!(form.is_true("DryRun"));
    }

    #[test]
    fn text_is_escaped() {
        let mut xml = Xml::default();
        xml.field("a", "<&>\n").element("b", |_| ());

        assert!(xml.root("r", "n").ends_with("<r xmlns=\"n\"><a>&lt;&amp;&gt;&#10;</a><b></b></r>"));
    }
}
