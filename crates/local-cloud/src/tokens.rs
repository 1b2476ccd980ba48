//! The client request tokens of transactions: DynamoDB applies transactions with one token once, within ten minutes.
//! Source: Amazon DynamoDB API Reference, `TransactWriteItems`.
//!
//! The engine knows tokens, too, but looks at all of them in each transaction. A local mission makes thousands a minute.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

/// How long DynamoDB knows a token.
const LIFE: Duration = Duration::from_mins(10);

/// What is known of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Never,
    /// With the same parameters.
    Same,
    /// With others.
    Other,
}

/// The tokens of the transactions that were applied in the last minutes.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    /// The digest of each token's parameters.
    digests: HashMap<String, u64>,
    /// The oldest token is the first.
    ages: VecDeque<(Instant, String)>,
}

impl Tokens {
    /// Returns whether a token was used.
    pub(super) fn look(&mut self, token: &str, digest: u64) -> Seen {
        while let Some((_, old)) = self.ages.pop_front_if(|(used, _)| used.elapsed() >= LIFE) {
            self.digests.remove(&old);
        }
        match self.digests.get(token) {
            None => Seen::Never,
            Some(known) if *known == digest => Seen::Same,
            Some(_) => Seen::Other,
        }
    }

    /// Notes that the transaction with a token was applied.
    pub(super) fn note(&mut self, token: String, digest: u64) {
        self.ages.push_back((Instant::now(), token.clone()));
        self.digests.insert(token, digest);
    }
}

/// Returns a digest of a value that does not depend on the order of keys in objects.
pub(super) fn digest(value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    match value {
        Value::Object(map) => {
            let pairs = map.iter().map(|(key, value)| {
                let mut pair = DefaultHasher::new();
                (key, digest(value)).hash(&mut pair);
                pair.finish()
            });
            pairs.fold(0, u64::wrapping_add).hash(&mut hasher);
        }
        Value::Array(items) => items.iter().map(digest).collect::<Vec<_>>().hash(&mut hasher),
        leaf => leaf.hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_digest_knows_values_and_not_the_order_of_keys() {
        let of = |text: &str| digest(&serde_json::from_str(text).unwrap());
        assert_eq!(of(r#"{"a":[1,{"x":1,"y":2}],"b":null}"#), of(r#"{"b":null,"a":[1,{"y":2,"x":1}]}"#));
        for other in [r#"{"a":[{"x":1,"y":2},1],"b":null}"#, r#"{"a":[1,{"x":2,"y":1}],"b":null}"#, r#"{"a":1}"#] {
            assert_ne!(of(r#"{"a":[1,{"x":1,"y":2}],"b":null}"#), of(other), "{other}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_known_for_ten_minutes() {
        let mut tokens = Tokens::default();
        let (one, two) = (digest(&json!(1)), digest(&json!(2)));
        assert_eq!(tokens.look("t", one), Seen::Never);
        tokens.note("t".to_owned(), one);
        tokio::time::advance(LIFE.saturating_sub(Duration::from_secs(1))).await;
        assert_eq!((tokens.look("t", one), tokens.look("t", two)), (Seen::Same, Seen::Other));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(tokens.look("t", two), Seen::Never);
        assert!(tokens.digests.is_empty() && tokens.ages.is_empty());
    }
}
