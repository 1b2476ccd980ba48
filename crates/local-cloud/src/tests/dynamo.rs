//! The tables: one winner, one transaction, one code per error.

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType, Put, ScalarAttributeType,
    TransactWriteItem, Update,
};
use tokio::task::JoinSet;

use super::*;

fn string(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

fn number(number: i32) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

pub(super) async fn make_table(client: &Client) {
    client
        .create_table()
        .table_name("tasks")
        .billing_mode(BillingMode::PayPerRequest)
        .attribute_definitions(
            AttributeDefinition::builder().attribute_name("k").attribute_type(ScalarAttributeType::S).build().unwrap(),
        )
        .key_schema(KeySchemaElement::builder().attribute_name("k").key_type(KeyType::Hash).build().unwrap())
        .send()
        .await
        .unwrap();
}

async fn table() -> (TestCloud, Client) {
    let cloud = TestCloud::new();
    let client = Client::new(&config(cloud.http_client(None)));
    make_table(&client).await;
    (cloud, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn of_64_claimers_one_wins() {
    let (_cloud, client) = table().await;
    client.put_item().table_name("tasks").item("k", string("task")).item("attempt", number(0)).send().await.unwrap();

    let mut claims = JoinSet::new();
    for owner in 0..64 {
        let claim = client
            .update_item()
            .table_name("tasks")
            .key("k", string("task"))
            .update_expression("SET attempt = :next, #o = :me")
            .condition_expression("attempt = :seen")
            .expression_attribute_names("#o", "owner")
            .expression_attribute_values(":next", number(1))
            .expression_attribute_values(":seen", number(0))
            .expression_attribute_values(":me", number(owner));
        claims.spawn(async move { (owner, claim.send().await) });
    }
    let mut winners = Vec::new();
    for (owner, outcome) in claims.join_all().await {
        match outcome {
            Ok(_) => winners.push(owner),
            Err(error) => assert_eq!(code(&error), "ConditionalCheckFailedException"),
        }
    }

    assert_eq!(winners.len(), 1);
    let item =
        client.get_item().table_name("tasks").key("k", string("task")).consistent_read(true).send().await.unwrap();
    assert_eq!(item.item.unwrap()["owner"], number(winners[0]));
}

#[tokio::test]
async fn a_transaction_is_all_or_nothing_and_its_token_counts_once() {
    let (_cloud, client) = table().await;
    client.put_item().table_name("tasks").item("k", string("task")).item("attempt", number(2)).send().await.unwrap();
    let commit = |attempt: i32, token: &'static str| {
        let update = |key: &str| Update::builder().table_name("tasks").key("k", string(key));
        let task = update("task")
            .update_expression("SET done = :yes")
            .condition_expression("attempt = :mine")
            .expression_attribute_values(":yes", number(1))
            .expression_attribute_values(":mine", number(attempt))
            .build()
            .unwrap();
        let tally = update("tally")
            .update_expression("ADD ok :one")
            .expression_attribute_values(":one", number(1))
            .build()
            .unwrap();
        client
            .transact_write_items()
            .client_request_token(token)
            .transact_items(TransactWriteItem::builder().update(task).build())
            .transact_items(TransactWriteItem::builder().update(tally).build())
            .send()
    };

    let stale = commit(1, "stale").await.unwrap_err();
    commit(2, "mine").await.unwrap();
    commit(2, "mine").await.unwrap();

    let reasons: Vec<_> = match stale.into_service_error() {
        aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError::TransactionCanceledException(e) => {
            e.cancellation_reasons().iter().map(|reason| reason.code().unwrap_or_default().to_owned()).collect()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(reasons, ["ConditionalCheckFailed", "None"]);
    let tally = client.get_item().table_name("tasks").key("k", string("tally")).send().await.unwrap();
    assert_eq!(tally.item.unwrap()["ok"], number(1));
}

#[tokio::test]
async fn errors_have_the_codes_of_the_service() {
    let (_cloud, client) = table().await;

    let put = client.put_item().table_name("nowhere").item("k", string("x")).send().await.unwrap_err();
    assert_eq!(code(&put), "ResourceNotFoundException");
    let put = client.put_item().table_name("tasks").item("other", string("x")).send().await.unwrap_err();
    assert_eq!(code(&put), "ValidationException");
    let backups = client.describe_continuous_backups().table_name("tasks").send().await.unwrap_err();
    assert_eq!(code(&backups), "UnknownOperationException");
    let empty = Put::builder().table_name("tasks").item("k", string("")).build().unwrap();
    let put = client
        .transact_write_items()
        .transact_items(TransactWriteItem::builder().put(empty).build())
        .send()
        .await
        .unwrap_err();
    assert!(["ValidationException", "TransactionCanceledException"].contains(&code(&put).as_str()));
}

#[tokio::test]
async fn pages_work() {
    let (_cloud, client) = table().await;
    for index in 0..30 {
        let key = string(&format!("{index:02}"));
        client.put_item().table_name("tasks").item("k", key).item("n", number(index)).send().await.unwrap();
    }

    let pages = client.scan().table_name("tasks").limit(7).into_paginator().items().send();
    let items: Vec<_> = pages.collect::<Result<_, _>>().await.unwrap();
    assert_eq!(items.len(), 30);
    let found = client
        .query()
        .table_name("tasks")
        .key_condition_expression("k = :k")
        .expression_attribute_values(":k", string("07"))
        .send()
        .await
        .unwrap();
    assert_eq!(found.items()[0]["n"], number(7));
}

/// Puts two rows with this number in one transaction.
pub(super) async fn put_both(client: &Client, n: u64, filling: &str) {
    let put = |key: &str| {
        let put = Put::builder().table_name("tasks").item("k", string(key)).item("filling", string(filling));
        let put = put.item("n", AttributeValue::N(n.to_string())).build().unwrap();
        TransactWriteItem::builder().put(put).build()
    };
    let write = client.transact_write_items().transact_items(put("a")).transact_items(put("b"));
    write.send().await.unwrap();
}

/// Reads the numbers of the two rows; 0 for a missing row.
pub(super) async fn read_both(client: &Client) -> (u64, u64) {
    let read = async |key: &str| {
        let row = client.get_item().table_name("tasks").key("k", string(key)).send().await.unwrap();
        row.item.map_or(0, |row| row["n"].as_n().unwrap().parse().unwrap())
    };
    (read("a").await, read("b").await)
}
