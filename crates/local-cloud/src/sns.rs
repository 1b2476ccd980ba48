//! SNS: records the published messages, and refuses what SNS refuses.
//!
//! Each message is a line of `.lighthpc/notifications.jsonl`, for people and for later processes. Nothing is delivered
//! or deduplicated: tests count the calls.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Mutex;

use aws_smithy_types::body::SdkBody;
use serde::{Deserialize, Serialize};

use super::layout::{Layout, OpenError, own_file};
use super::lock::locked;
use super::query::{Form, Xml, fresh_id, reply};

const NAMESPACE: &str = "http://sns.amazonaws.com/doc/2010-03-31/";
/// SNS's own limits: <https://docs.aws.amazon.com/sns/latest/api/API_Publish.html>.
const SUBJECT_CHARS_MAX: usize = 100;
const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// A published message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The topic it was published to.
    pub topic_arn: String,
    /// The subject line, if one was given.
    pub subject: Option<String>,
    /// The message's body.
    pub message: String,
    /// The message group of a FIFO topic.
    pub group_id: Option<String>,
    /// The deduplication id of a FIFO topic.
    pub deduplication_id: Option<String>,
}

/// All messages ever published in this cloud.
#[derive(Debug)]
pub(super) struct Sns {
    /// The messages, and the file for more; `None`: opened for reading.
    sent: Mutex<(Vec<Published>, Option<File>)>,
}

impl Sns {
    /// Reads back what earlier processes published. A last line without its end is what one that was killed while
    /// writing left: it is dropped, as its sender had no answer.
    pub(super) fn open(layout: &Layout) -> Result<Self, OpenError> {
        let path = layout.notifications();
        let (sent, whole_bytes) = read_messages(&path)?;
        let file = own_file(File::options().create(true).append(true)).open(&path).map_err(OpenError::io(&path))?;
        file.set_len(whole_bytes).map_err(OpenError::io(&path))?;
        Ok(Self { sent: Mutex::new((sent, Some(file))) })
    }

    /// As [`Self::open`], but for reading while another process can be writing: nothing is cut off or published.
    pub(super) fn attach(layout: &Layout) -> Result<Self, OpenError> {
        let (sent, _) = read_messages(&layout.notifications())?;
        Ok(Self { sent: Mutex::new((sent, None)) })
    }

    pub(super) fn published(&self) -> Vec<Published> {
        locked(&self.sent).0.clone()
    }

    /// Answers one call.
    pub(super) fn answer(&self, form: &Form) -> http::Response<SdkBody> {
        match form.action() {
            "Publish" => self.publish(form),
            other => error_reply(400, "InvalidAction", &format!("the local cloud's SNS has no {other:?}")),
        }
    }

    fn publish(&self, form: &Form) -> http::Response<SdkBody> {
        let text = |name| form.get(name).map(str::to_owned);
        let message = Published {
            topic_arn: text("TopicArn").or_else(|| text("TargetArn")).unwrap_or_default(),
            subject: text("Subject"),
            message: text("Message").unwrap_or_default(),
            group_id: text("MessageGroupId"),
            deduplication_id: text("MessageDeduplicationId"),
        };
        if let Some(reason) = invalid_parameter(&message) {
            return error_reply(400, "InvalidParameter", &format!("Invalid parameter: {reason}"));
        }
        if let Err(error) = self.record(message) {
            return error_reply(500, "InternalError", &format!("recording the message: {error}"));
        }
        let mut xml = Xml::default();
        xml.element("PublishResult", |xml| {
            xml.field("MessageId", fresh_id());
        });
        xml.element("ResponseMetadata", |xml| {
            xml.field("RequestId", fresh_id());
        });
        reply(200, "text/xml", xml.root("PublishResponse", NAMESPACE))
    }

    fn record(&self, message: Published) -> io::Result<()> {
        let mut line = serde_json::to_string(&message)?;
        line.push('\n');
        let mut sent = locked(&self.sent);
        let Some(file) = &mut sent.1 else { return Err(io::ErrorKind::ReadOnlyFilesystem.into()) };
        file.write_all(line.as_bytes())?;
        sent.0.push(message);
        Ok(())
    }
}

/// Builds an error answer from which the SDK reads the code.
pub(super) fn error_reply(status: u16, code: &str, message: &str) -> http::Response<SdkBody> {
    let mut xml = Xml::default();
    xml.element("Error", |xml| {
        xml.field("Type", if status < 500 { "Sender" } else { "Receiver" })
            .field("Code", code)
            .field("Message", message);
    });
    xml.field("RequestId", fresh_id());
    reply(status, "text/xml", xml.root("ErrorResponse", NAMESPACE))
}

/// Returns the reason for which SNS refuses this message.
fn invalid_parameter(message: &Published) -> Option<&'static str> {
    if !message.topic_arn.starts_with("arn:") {
        return Some("TopicArn");
    }
    if message.message.is_empty() {
        return Some("Empty message");
    }
    if message.message.len() > MESSAGE_BYTES_MAX {
        return Some("Message too long");
    }
    // "ASCII text that begins with a letter, number, or punctuation mark, no line breaks or control characters,
    // less than 100 characters". A file name in a subject often breaks this.
    let is_plain = |subject: &str| {
        !subject.is_empty()
            && subject.len() < SUBJECT_CHARS_MAX
            && !subject.starts_with(' ')
            && subject.chars().all(|c| c.is_ascii() && !c.is_ascii_control())
    };
    if message.subject.as_deref().is_some_and(|subject| !is_plain(subject)) {
        return Some("Subject");
    }
    None
}

/// Reads the complete messages, and returns them and their length in bytes.
pub(super) fn read_messages(path: &Path) -> Result<(Vec<Published>, u64), OpenError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(source) => return Err(OpenError::Io { path: path.to_owned(), source }),
    };
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let messages = text[..whole]
        .split_inclusive(|byte| *byte == b'\n')
        .enumerate()
        .map(|(index, line)| {
            serde_json::from_slice(line).map_err(|error| OpenError::State {
                path: path.to_owned(),
                reason: format!("line {}: {error}", index + 1),
            })
        })
        .collect::<Result<_, _>>()?;
    Ok((messages, whole as u64))
}
