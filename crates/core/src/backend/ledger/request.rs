//! The stored form of a launch whose answer is unknown.

use aws_sdk_dynamodb::types::AttributeValue;

use super::key::Item;
use crate::domain::policy::{Purchase, words};
use crate::domain::request::Reserved;

/// Returns the value of `launchRequest`.
pub(super) fn value(reserved: &Reserved) -> AttributeValue {
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let number = |number: u64| AttributeValue::N(number.to_string());
    let mut map = Item::from([
        ("for".to_owned(), number(reserved.number)),
        ("token".to_owned(), text(&reserved.token)),
        ("version".to_owned(), text(&reserved.version)),
        ("types".to_owned(), text(&reserved.types.join(","))),
        ("subnets".to_owned(), text(&reserved.subnets.join(","))),
        ("purchase".to_owned(), text(reserved.purchase.as_str())),
        ("count".to_owned(), number(reserved.count.into())),
        ("askedAt".to_owned(), number(reserved.asked_at)),
        ("digest".to_owned(), text(&reserved.digest)),
    ]);
    if reserved.is_lost {
        map.insert("isLost".to_owned(), AttributeValue::Bool(true));
    }
    if let Some(epoch) = reserved.epoch {
        map.insert("epoch".to_owned(), number(epoch));
    }
    AttributeValue::M(map)
}

/// Parses it; `None` if another program wrote it. Then the launch is not repeated, and the next one has another number.
pub(super) fn read(value: &AttributeValue) -> Option<Reserved> {
    let map = value.as_m().ok()?;
    let text = |name: &str| map.get(name).and_then(|value| value.as_s().ok()).cloned();
    let number = |name: &str| map.get(name).and_then(|value| value.as_n().ok()).and_then(|n| n.parse::<u64>().ok());
    Some(Reserved {
        number: number("for")?,
        token: text("token")?,
        version: text("version")?,
        // An earlier version did not store it, so a launch with instance types is not repeated.
        types: text("types").map(|types| words(&types)).unwrap_or_default(),
        subnets: words(&text("subnets")?),
        purchase: Purchase::parse(&text("purchase")?)?,
        count: number("count").and_then(|count| u32::try_from(count).ok())?,
        asked_at: number("askedAt").unwrap_or(0),
        is_lost: map.get("isLost").is_some_and(|value| value.as_bool().copied().unwrap_or(true)),
        epoch: number("epoch"),
        digest: text("digest")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_is_read_back_and_what_others_wrote_is_none() {
        for (subnets, epoch) in [(vec![], None), (vec!["subnet-1".to_owned(), "subnet-2".to_owned()], Some(3))] {
            let reserved = Reserved {
                number: 4,
                token: "t".to_owned(),
                version: "$Latest".to_owned(),
                types: subnets.iter().map(|name| format!("type-of-{name}")).collect(),
                subnets,
                purchase: Purchase::OnDemand,
                count: 2,
                asked_at: 1_700_000_000,
                is_lost: epoch.is_some(),
                epoch,
                digest: "d".to_owned(),
            };
            assert_eq!(read(&value(&reserved)), Some(reserved));
        }
        assert_eq!(read(&AttributeValue::S("{}".to_owned())), None);
        assert_eq!(read(&AttributeValue::M(Item::new())), None);
    }
}
