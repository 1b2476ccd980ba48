//! The limits of throughput of AWS's services, as models behind the wire, and counts of what requests cost.
//!
//! A request is throttled when one of its buckets is empty; otherwise its units are taken, also below zero: what a request
//! consumes is known after it was applied.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use lighthpc::domain::ids::{MissionId, SrcId};
use lighthpc::domain::mission::{open_partition, shard_of, tally_shards_for};
use local_cloud::{Answer, Call, Service};
use serde_json::Value;
use tokio::time::Instant;

use crate::lock::locked;
use crate::plan::Dice;
use crate::requests::{Item, index_partition, items};
use crate::tasks::MISSION;

/// Units per second of one partition of DynamoDB, of a table or an index, and of one item. Source: Amazon DynamoDB
/// Developer Guide, "Designing partition keys".
const PARTITION: Rates = Rates { write: 1_000.0, read: 3_000.0 };
/// Units per second of a new table in on-demand mode, and of each of its indexes. Source: the same guide, "On-demand
/// capacity mode", initial throughput.
const TABLE: Rates = Rates { write: 4_000.0, read: 12_000.0 };
/// Requests per second for a prefix of a bucket of S3; here for a whole bucket. Source: Amazon S3 User Guide, "Optimizing
/// performance".
const PREFIX: Rates = Rates { write: 3_500.0, read: 5_500.0 };
/// Requests to an action of EC2: those that a full bucket holds, and the refill per second. Source: Amazon EC2 Developer
/// Guide, "Request throttling".
const EC2_WRITE: (f64, f64) = (50.0, 5.0);
const EC2_READ: (f64, f64) = (100.0, 20.0);

/// USD for a million units or requests, us-east-1. Source: the price lists of Amazon DynamoDB (on-demand mode) and Amazon
/// S3 Standard, 2026-11.
const USD_WRITE_UNITS: f64 = 0.625;
const USD_READ_UNITS: f64 = 0.125;
const USD_S3_WRITES: f64 = 5.0;
const USD_S3_READS: f64 = 0.4;

/// How long a request is under way, there and back.
fn latency(service: Service) -> (Duration, Duration) {
    let ms = |low, high| (Duration::from_millis(low), Duration::from_millis(high));
    match service {
        Service::Dynamodb => ms(3, 10),
        Service::S3 => ms(50, 150),
        Service::Ec2 => ms(200, 800),
        Service::Sns => ms(20, 60),
        Service::Imds => ms(0, 1),
    }
}

#[derive(Clone, Copy, Debug)]
struct Rates {
    write: f64,
    read: f64,
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    level: f64,
    most: f64,
    per_s: f64,
    filled: Instant,
    used: f64,
    throttled: u64,
}

impl Bucket {
    fn new(most: f64, per_s: f64) -> Self {
        Self { level: most, most, per_s, filled: Instant::now(), used: 0.0, throttled: 0 }
    }

    fn has_room(&mut self) -> bool {
        let now = Instant::now();
        let refill = self.per_s * now.duration_since(self.filled).as_secs_f64();
        (self.level, self.filled) = ((self.level + refill).min(self.most), now);
        self.level > 0.0
    }

    fn take(&mut self, units: f64) {
        self.level -= units;
        self.used += units;
    }
}

/// The requests of one operation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Operation {
    pub(crate) requests: u64,
    pub(crate) throttled: u64,
}

/// What was consumed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Consumed {
    pub(crate) write_units: f64,
    pub(crate) read_units: f64,
    pub(crate) s3_writes: f64,
    pub(crate) s3_reads: f64,
    pub(crate) operations: BTreeMap<String, Operation>,
}

impl Consumed {
    /// Returns the price in USD, without instances and storage.
    pub(crate) fn usd(&self) -> f64 {
        let units = self.write_units * USD_WRITE_UNITS + self.read_units * USD_READ_UNITS;
        (units + self.s3_writes * USD_S3_WRITES + self.s3_reads * USD_S3_READS) / 1e6
    }
}

/// A bucket by its use: partition or table, key, and whether it is of writes.
type BucketName = (String, bool);

/// The models.
#[derive(Debug)]
pub(crate) struct Limits {
    shards: u32,
    buckets: Mutex<BTreeMap<BucketName, Bucket>>,
    consumed: Mutex<Consumed>,
    dice: Mutex<Dice>,
    /// How long each request takes; as [`latency`] if not given.
    request: Option<Duration>,
}

impl Limits {
    /// Makes the models for a mission of `tasks` tasks, in which each request takes `request`, if it is given.
    pub(crate) fn new(tasks: u64, request: Option<Duration>) -> Self {
        Self {
            shards: tally_shards_for(tasks),
            buckets: Mutex::default(),
            consumed: Mutex::default(),
            dice: Mutex::new(Dice::new(tasks, "limits")),
            request,
        }
    }

    pub(crate) fn consumed(&self) -> Consumed {
        locked(&self.consumed).clone()
    }

    /// Returns the buckets of which most was used or that throttled, with units used and requests throttled.
    pub(crate) fn hottest(&self, count: usize) -> Vec<(String, f64, u64)> {
        let buckets = locked(&self.buckets);
        let mut all: Vec<_> = buckets
            .iter()
            .map(|((name, is_write), bucket)| {
                (format!("{name} {}", if *is_write { "writes" } else { "reads" }), bucket.used, bucket.throttled)
            })
            .collect();
        all.sort_by(|a, b| (b.2, b.1).partial_cmp(&(a.2, a.1)).unwrap_or(std::cmp::Ordering::Equal));
        all.truncate(count);
        all
    }

    /// Carries a request: it takes its time, or is throttled.
    pub(crate) async fn carry(&self, mut call: Call) -> Answer {
        let (low, high) = self.request.map_or_else(|| latency(call.service), |request| (request, request));
        let way = || locked(&self.dice).time(low / 2, high / 2);
        let (there, back) = (way(), way());
        tokio::time::sleep(there).await;
        let wanted = self.wanted(&call);
        let is_throttled = !self.have_room(&wanted);
        {
            let mut consumed = locked(&self.consumed);
            let operation = consumed.operations.entry(format!("{:?} {}", call.service, call.operation)).or_default();
            operation.requests += 1;
            operation.throttled += u64::from(is_throttled);
        }
        let answer = if is_throttled {
            Ok(throttled(&call))
        } else {
            ask_for_units(&mut call);
            let answer = call.apply().await;
            self.charge(&call, &wanted, &answer);
            answer
        };
        tokio::time::sleep(back).await;
        answer
    }

    /// Returns the buckets of a request, with their size and refill.
    fn wanted(&self, call: &Call) -> Vec<(BucketName, f64, f64)> {
        let is_write = is_write(call);
        let rate = |rates: Rates| if is_write { rates.write } else { rates.read };
        let even = |name: String, rates: Rates| ((name, is_write), rate(rates), rate(rates));
        match call.service {
            Service::S3 => {
                let bucket = call.parts.uri.path().trim_start_matches('/').split('/').next().unwrap_or_default();
                vec![even(format!("bucket {bucket}"), PREFIX)]
            }
            Service::Ec2 => {
                let (most, per_s) = if is_write { EC2_WRITE } else { EC2_READ };
                vec![((format!("action {}", call.operation), is_write), most, per_s)]
            }
            Service::Sns | Service::Imds => Vec::new(),
            Service::Dynamodb => {
                let body: Value = serde_json::from_slice(&call.body).unwrap_or_default();
                let mut names = Vec::new();
                for Item { table, key, .. } in items(&body) {
                    names.push(even(format!("table {table}"), TABLE));
                    names.push(even(format!("item {table} {key}"), PARTITION));
                }
                names.extend(self.index_partitions(&body).into_iter().flat_map(|partition| {
                    let table = even("index of open tasks".to_owned(), TABLE);
                    [table, even(format!("partition {partition} of the index"), PARTITION)]
                }));
                names.sort_by(|(a, ..), (b, ..)| a.cmp(b));
                names.dedup_by(|(a, ..), (b, ..)| a == b);
                names
            }
        }
    }

    /// Returns the partitions of the index of open tasks that a request reads, or changes.
    fn index_partitions(&self, body: &Value) -> Vec<String> {
        if let Some(partition) = index_partition(body) {
            return vec![partition.to_owned()];
        }
        let mission = MissionId::new(MISSION).ok();
        let changes_index = |item: &Item<'_>| {
            item.part["Item"]["openAs"].is_object()
                || item.part["UpdateExpression"].is_string() && item.part.to_string().contains("openAs")
        };
        let changed = items(body).into_iter().filter(changes_index).filter_map(|item| SrcId::new(item.key).ok());
        changed.map(|src| open_partition(mission.as_ref(), shard_of(&src, self.shards))).collect()
    }

    fn have_room(&self, wanted: &[(BucketName, f64, f64)]) -> bool {
        let mut buckets = locked(&self.buckets);
        for (name, most, per_s) in wanted {
            let bucket = buckets.entry(name.clone()).or_insert_with(|| Bucket::new(*most, *per_s));
            if !bucket.has_room() {
                bucket.throttled += 1;
                return false;
            }
        }
        true
    }

    /// Takes the units of a request from its buckets: those of a table, spread over its items.
    fn charge(&self, call: &Call, wanted: &[(BucketName, f64, f64)], answer: &Answer) {
        let is_write = is_write(call);
        let (table_units, index_units) = match call.service {
            Service::Dynamodb => units(answer).unwrap_or((1.0, 0.0)),
            _ => (1.0, 0.0),
        };
        let count = |start: &str| wanted.iter().filter(|((name, _), ..)| name.starts_with(start)).count().max(1);
        let (items, partitions) = (count("item "), count("partition "));
        let mut buckets = locked(&self.buckets);
        for (name, ..) in wanted {
            let Some(bucket) = buckets.get_mut(name) else { continue };
            #[expect(clippy::cast_precision_loss, reason = "a request has at most some hundred items")]
            bucket.take(match name.0.split(' ').next() {
                Some("item") => table_units / items as f64,
                Some("partition") => index_units / partitions as f64,
                Some("index") => index_units,
                _ => table_units,
            });
        }
        drop(buckets);
        let mut consumed = locked(&self.consumed);
        let consumed = &mut *consumed;
        let (units, requests) = if is_write {
            (&mut consumed.write_units, &mut consumed.s3_writes)
        } else {
            (&mut consumed.read_units, &mut consumed.s3_reads)
        };
        match call.service {
            Service::Dynamodb => *units += table_units + index_units,
            // Deletions are free.
            Service::S3 if !call.operation.starts_with("Delete") => *requests += 1.0,
            _ => {}
        }
    }
}

fn is_write(call: &Call) -> bool {
    let reads = match call.service {
        // A listing is billed like a write.
        Service::S3 => ["GetObject", "HeadObject", "HeadBucket"].as_slice(),
        Service::Dynamodb => &["GetItem", "BatchGetItem", "Query", "Scan", "TransactGetItems", "DescribeTable"],
        Service::Ec2 | Service::Sns | Service::Imds => &["Describe", "Get"],
    };
    !reads.iter().any(|read| call.operation.starts_with(read))
}

/// Lets the service say what a request consumes.
fn ask_for_units(call: &mut Call) {
    if call.service != Service::Dynamodb {
        return;
    }
    let Ok(Value::Object(mut body)) = serde_json::from_slice(&call.body) else { return };
    body.insert("ReturnConsumedCapacity".to_owned(), "INDEXES".into());
    call.body = Value::Object(body).to_string().into();
}

/// Returns the units that an answer names: of tables, and of indexes.
fn units(answer: &Answer) -> Option<(f64, f64)> {
    let body: Value = serde_json::from_slice(answer.as_ref().ok()?.body().bytes()?).ok()?;
    let named = &body["ConsumedCapacity"];
    let each = named.as_array().map_or_else(|| std::slice::from_ref(named), Vec::as_slice);
    let mut sum = (0.0, 0.0);
    for table in each {
        let indexes = table["GlobalSecondaryIndexes"].as_object().into_iter().flatten();
        let indexes: f64 = indexes.filter_map(|(_, index)| index["CapacityUnits"].as_f64()).sum();
        sum = (sum.0 + table["CapacityUnits"].as_f64()? - indexes, sum.1 + indexes);
    }
    Some(sum)
}

/// Makes the answer of a service that throttles.
pub(crate) fn throttled(call: &Call) -> http::Response<aws_smithy_types::body::SdkBody> {
    let (status, code) = match call.service {
        Service::Dynamodb => (400, "ProvisionedThroughputExceededException"),
        Service::S3 => (503, "SlowDown"),
        Service::Sns => (400, "Throttling"),
        Service::Ec2 => (503, "RequestLimitExceeded"),
        Service::Imds => (503, "Throttling"),
    };
    call.refusal(status, code)
}
