//! SNS: sends the notification of a complete mission.

use aws_sdk_sns::Client;
use aws_sdk_sns::config::Builder;

use super::error::CloudError;
use super::sdk::Wire;
use crate::domain::printable;

/// The maximum length of an SNS subject ("less than 100"), which must be ASCII without line breaks.
/// Source: Amazon SNS API reference, `Publish`.
const SUBJECT_LEN_MAX: usize = 99;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The subject of the e-mail.
    pub subject: String,
    /// The text, of several lines. Names in it must be single lines; control characters are escaped.
    pub text: String,
    /// The message group of a FIFO topic: the mission.
    pub group: String,
    /// The deduplication id. It is the same for a repetition, which a FIFO topic drops (for 5 minutes).
    pub deduplication: String,
}

/// The SNS client. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Notifier {
    client: Client,
}

impl Notifier {
    /// Creates the client. Sends no requests.
    #[must_use]
    pub fn new(wire: &Wire) -> Self {
        Self { client: Client::from_conf(Builder::from(&wire.config).retry_classifier(wire.renewal.clone()).build()) }
    }

    /// Checks that a topic exists; publishes nothing.
    ///
    /// # Errors
    /// [`CloudError`]; `NotFound` if the topic does not exist.
    pub async fn look(&self, topic_arn: &str) -> Result<(), CloudError> {
        let answer = self.client.get_topic_attributes().topic_arn(topic_arn).send().await;
        answer.map(drop).map_err(|e| CloudError::sdk("GetTopicAttributes", format!("topic {topic_arn}"), e))
    }

    /// Publishes a message. FIFO topics (`….fifo`) get a group and a deduplication id.
    ///
    /// A second call sends a second message, except to a FIFO topic.
    ///
    /// # Errors
    /// [`CloudError`]; `NotFound` if the topic does not exist.
    pub async fn publish(&self, topic_arn: &str, message: &Message) -> Result<(), CloudError> {
        let text = cut(printable::lines(&message.text));
        let mut publish = self.client.publish().topic_arn(topic_arn).subject(subject(&message.subject)).message(text);
        // In an ARN, the suffix is `.fifo` in lower case.
        if topic_arn.rsplit('.').next() == Some("fifo") {
            publish = publish
                .message_group_id(fifo_id(&message.group))
                .message_deduplication_id(fifo_id(&message.deduplication));
        }
        publish.send().await.map_err(|e| CloudError::sdk("Publish", format!("topic {topic_arn}"), e))?;
        Ok(())
    }
}

/// The maximum length of a message is 256 KiB. Source: Amazon SNS API reference, `Publish`.
const TEXT_BYTES_MAX: usize = 200 * 1024;

/// Cuts a text that SNS would refuse: a shorter notification is better than none.
fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.push_str("\n(cut)\n");
    }
    text
}

/// Converts a line to a valid SNS subject.
fn subject(line: &str) -> String {
    let ascii: String = line.chars().map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).collect();
    let mut subject: String = ascii.trim_start().chars().take(SUBJECT_LEN_MAX).collect();
    if subject.is_empty() {
        subject.push_str("lighthpc");
    }
    subject
}

/// Returns a FIFO id, 1 to 128 letters, digits and punctuation marks, that is different for different names.
fn fifo_id(name: &str) -> String {
    let is_plain = !name.is_empty() && name.len() <= 128 && name.bytes().all(|b| b.is_ascii_graphic());
    if is_plain { name.to_owned() } else { crate::domain::keys::digest_hex(&[name], 64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_short_ascii_lines() {
        assert_eq!(subject("HPC mission M001 accomplished"), "HPC mission M001 accomplished");
        assert_eq!(subject("mission\n文"), "mission??");
        assert_eq!(subject(&"x".repeat(300)).len(), SUBJECT_LEN_MAX);
        assert_eq!(subject(""), "lighthpc");
    }

    #[test]
    fn a_text_that_is_too_long_is_cut_between_characters() {
        assert_eq!(cut("a".to_owned()), "a");
        let long = cut("文".repeat(100_000));
        assert!(long.len() <= TEXT_BYTES_MAX + 10 && long.ends_with("文\n(cut)\n"));
    }

    #[test]
    fn fifo_ids_are_legal() {
        assert_eq!(fifo_id("M001"), "M001");
        assert_eq!(fifo_id("my mission").len(), 64);
        assert_ne!(fifo_id("a b"), fifo_id("a c"));
    }
}
