//! The mission's row and its tally items.

use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::AttributeValue;

use super::Ledger;
use super::expression::Expression;
use super::item::{self, Row, number, text};
use super::key::Item;
use super::mission_row::TALLY_NAMES;
use super::renew::seconds;
use super::transaction::{CONFLICT_ATTEMPTS_MAX, Transacted, fresh_token, tally_key, update};
use crate::backend::{CloudError, Kind};
use crate::domain::backoff;
use crate::domain::ids::MissionId;
use crate::domain::machine_info::MicroUsd;
use crate::domain::mission::{Mission, NotifyOn, Tally, shard_of_name, tally_shards_for};
use crate::domain::policy::Policy;
use crate::domain::value::Form;

/// What a node costs in some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeCost {
    /// The time, in seconds.
    pub time_s: u64,
    /// The part of it whose price is unknown, in seconds.
    pub unpriced_s: u64,
    /// The cost of the rest.
    pub cost: MicroUsd,
}

/// An early notification, and what identifies its occasion: the same one is not sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The first failure since the mission was opened, by `opened`.
    Failure(u64),
    /// A stall, by the tally's `seq`.
    Stall(u64),
}

/// The values of a new mission's row.
#[derive(Clone, Debug)]
pub struct NewMission {
    /// The key.
    pub id: MissionId,
    /// The number of tasks.
    pub trans_number: u64,
    /// The number of tally items. It is fixed, because it determines the item that counts a commit.
    pub tally_shards: u32,
    /// The workload's command line, for `sh -c`.
    pub exec: Option<String>,
    /// The display name.
    pub name: Option<String>,
    /// The number of nodes; `None`: one node per task.
    pub nodes: Option<u32>,
    /// The number of tasks that a node runs at the same time.
    pub slots: Option<u16>,
    /// Whether objects under its prefix become tasks; `None`: yes, as in the first version.
    pub uploads: Option<bool>,
    /// What people are notified of before its end.
    pub notify_on: NotifyOn,
    /// The policy for purchases.
    pub policy: Policy,
    /// The current time, RFC 3339 UTC.
    pub now: String,
}

impl NewMission {
    /// Creates the values of a mission with this number of tasks. The settings determine the rest.
    #[must_use]
    pub fn of(id: MissionId, trans_number: u64) -> Self {
        Self {
            id,
            trans_number,
            tally_shards: tally_shards_for(trans_number),
            exec: None,
            name: None,
            nodes: None,
            slots: None,
            uploads: None,
            notify_on: NotifyOn::default(),
            policy: Policy::default(),
            now: String::new(),
        }
    }
}

impl Ledger {
    /// Reads a mission's row consistently; `None` if it does not exist.
    ///
    /// # Errors
    /// [`CloudError`]; `NoTable` or `TableKey` if the table is missing or has another key.
    pub async fn mission(&self, id: &MissionId) -> Result<Option<Mission>, CloudError> {
        let answer = self
            .client
            .get_item()
            .table_name(&self.tables.missions)
            .set_key(Some(mission_key(id)))
            .consistent_read(true)
            .send()
            .await
            .map_err(|error| self.missions_error("GetItem", error))?;
        Ok(answer.item.map(|item| Row(&item).mission(id.clone())))
    }

    /// Creates a mission's row; `false` if it exists, which is then not changed.
    ///
    /// # Errors
    /// [`CloudError`]; `Invalid` if a new mission cannot have the id. Callers check user input before.
    pub async fn create_mission(&self, new: &NewMission) -> Result<bool, CloudError> {
        if let Some(rule) = new.id.unfit() {
            let resource = format!("table {}", self.tables.missions);
            return Err(CloudError::new(
                Kind::Invalid,
                "PutItem",
                resource,
                format!("the id of a new mission: {rule}"),
            ));
        }
        let mut row = mission_key(&new.id);
        row.insert(item::TRANS_NUMBER.to_owned(), number(new.trans_number));
        row.insert(item::TRANS_OK.to_owned(), number(0));
        row.insert(item::TRANS_FAILED.to_owned(), number(0));
        row.insert(item::TALLY_SHARDS.to_owned(), number(new.tally_shards.into()));
        row.insert(item::RESULT_LIST.to_owned(), AttributeValue::L(vec![text("rsltList")]));
        row.insert(item::NOTIFIED.to_owned(), text("No"));
        row.insert(item::OPENED.to_owned(), number(1));
        let policy = &new.policy;
        let words = [
            (item::EXEC, new.exec.clone()),
            (item::MISSION_NAME, new.name.clone()),
            (item::UPLOADS, new.uploads.map(|are_taken| if are_taken { "yes" } else { "no" }.to_owned())),
            (item::NOTIFY_ON, new.notify_on.words().map(ToOwned::to_owned)),
            (item::TIME_CFG, Some(new.now.clone()).filter(|now| !now.is_empty())),
            ("bidMode", policy.bid_mode.map(|mode| mode.as_str().to_owned())),
            ("bidInstanceType", Some(policy.instance_types.join(",")).filter(|types| !types.is_empty())),
            ("maxUnitprice", policy.max_price.as_ref().map(ToString::to_string)),
            ("maxWaitTime", policy.max_wait.map(|wait| wait.as_secs().to_string())),
        ];
        for (name, word) in words {
            if let Some(word) = word {
                row.insert(name.to_owned(), text(word));
            }
        }
        let numbers = [
            (item::NODES, new.nodes.map(u64::from)),
            (item::SLOTS, new.slots.map(u64::from)),
            ("onDemandFloor", policy.on_demand_floor.map(u64::from)),
        ];
        for (name, n) in numbers {
            if let Some(n) = n {
                row.insert(name.to_owned(), number(n));
            }
        }
        self.put_new(&self.tables.missions, item::MISSION_KEY, row).await
    }

    /// Sets a mission's workload; `None`: the simulated one.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn set_exec(&self, id: &MissionId, exec: Option<&str>) -> Result<(), CloudError> {
        let expression = match exec {
            Some(exec) => Expression::default().set(item::EXEC, text(exec)),
            None => Expression::default().remove(item::EXEC),
        };
        let expression = expression.when("attribute_exists({})", item::MISSION_KEY, None);
        self.update_mission(id, &expression).await.map(|_| ())
    }

    /// Sets whether objects under a mission's prefix become tasks.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn set_uploads(&self, id: &MissionId, are_taken: bool) -> Result<(), CloudError> {
        let expression = Expression::default().set(item::UPLOADS, text(if are_taken { "yes" } else { "no" }));
        let expression = expression.when("attribute_exists({})", item::MISSION_KEY, None);
        self.update_mission(id, &expression).await.map(|_| ())
    }

    /// Sets what people are notified of before a mission's end.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn set_notify_on(&self, id: &MissionId, notify_on: NotifyOn) -> Result<(), CloudError> {
        let expression = match notify_on.words() {
            Some(words) => Expression::default().set(item::NOTIFY_ON, text(words)),
            None => Expression::default().remove(item::NOTIFY_ON),
        };
        let expression = expression.when("attribute_exists({})", item::MISSION_KEY, None);
        self.update_mission(id, &expression).await.map(|_| ())
    }

    /// Notes since when a mission's tasks wait and none runs, with the tally's `seq`; `None`: one runs.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn note_idle(&self, id: &MissionId, idle: Option<(u64, &str)>) -> Result<(), CloudError> {
        let expression = match idle {
            Some((seq, since)) => {
                Expression::default().set(item::IDLE_SEQ, number(seq)).set(item::IDLE_SINCE, text(since))
            }
            None => Expression::default().remove(item::IDLE_SEQ).remove(item::IDLE_SINCE),
        };
        let expression = expression.when("attribute_exists({})", item::MISSION_KEY, None);
        self.update_mission(id, &expression).await.map(|_| ())
    }

    /// Notes that an early notification was sent.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn note_notice(&self, id: &MissionId, notice: Notice) -> Result<(), CloudError> {
        let (name, value) = match notice {
            Notice::Failure(opened) => (item::FAILURE_NOTIFIED, opened),
            Notice::Stall(seq) => (item::STALL_NOTIFIED, seq),
        };
        let expression = Expression::default().set(name, number(value));
        let expression = expression.when("attribute_exists({})", item::MISSION_KEY, None);
        self.update_mission(id, &expression).await.map(|_| ())
    }

    /// Sets a mission's workload, number of nodes, and tasks per node. `None` removes a value.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if the mission does not exist.
    pub async fn set_workload(
        &self,
        id: &MissionId,
        exec: Option<&str>,
        nodes: Option<u32>,
        slots: Option<u16>,
    ) -> Result<bool, CloudError> {
        let values = [
            (item::EXEC, exec.map(text)),
            (item::NODES, nodes.map(|nodes| number(nodes.into()))),
            (item::SLOTS, slots.map(|slots| number(slots.into()))),
        ];
        let expression = values.into_iter().fold(Expression::default(), |expression, (name, value)| match value {
            Some(value) => expression.set(name, value),
            None => expression.remove(name),
        });
        let expression = expression.when("attribute_exists({})", item::MISSION_KEY, None);
        self.update_mission(id, &expression).await
    }

    /// Changes a mission's number of tasks, and reopens it, on condition that the number has not changed.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if the number has changed.
    pub async fn resize_mission(&self, mission: &Mission, trans_number: u64) -> Result<bool, CloudError> {
        let expression = opened(Expression::default(), mission)
            .set(item::TRANS_NUMBER, number(trans_number))
            // The current number of items: a larger one would select other items.
            .set_if_absent(item::TALLY_SHARDS, number(mission.tally_shards.into()));
        let expression = match &mission.seen {
            Some(seen) => expression.if_unchanged(item::TRANS_NUMBER, &seen.trans_number),
            None => expression,
        };
        self.update_mission(&mission.id, &expression).await
    }

    /// Sets the number of tasks of a cancelled mission, on condition that the number and the cancellation have not
    /// changed.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if either has changed.
    pub async fn settle_mission(&self, mission: &Mission, trans_number: u64) -> Result<bool, CloudError> {
        let seen = mission.seen.clone().unwrap_or_default();
        let expression = Expression::default()
            .set(item::TRANS_NUMBER, number(trans_number))
            .when("attribute_exists({})", item::CANCELLED_AT, None)
            .if_unchanged(item::TRANS_NUMBER, &seen.trans_number);
        self.update_mission(&mission.id, &mission_as_seen(expression, mission)).await
    }

    /// Reads and sums the mission's tally items, consistently.
    ///
    /// The items are read one by one, not in one snapshot. This is sufficient: each committer reads after its own
    /// commit, so the last one reads all commits.
    ///
    /// # Errors
    /// [`CloudError`]; `Throttled` if DynamoDB leaves keys unprocessed for about 10 s.
    pub async fn tally(&self, mission: &Mission) -> Result<Tally, CloudError> {
        let keys: Vec<Item> = (0..mission.tally_shards).map(|n| tally_key(&mission.id, n)).collect();
        let mut sum = [0_i64; TALLY_NAMES.len()];
        for keys in keys.chunks(100) {
            for row in self.batch_get(&self.tables.missions, keys.to_vec()).await? {
                for (all, one) in sum.iter_mut().zip(Row(&row).tally()) {
                    *all = all.saturating_add(one);
                }
            }
        }
        let [ok, failed, seconds, ms, seq, node_s, unpriced_s, cost] =
            sum.map(|count| u64::try_from(count).unwrap_or(0));
        // Commits of earlier versions count whole seconds only.
        let rounding = ok.saturating_add(failed).saturating_mul(500);
        let time_cost_ms =
            if seconds.saturating_mul(1000) > ms.saturating_add(rounding) { seconds.saturating_mul(1000) } else { ms };
        Ok(Tally { ok, failed, time_cost_ms, seq, node_s, unpriced_s, cost: MicroUsd(cost) })
    }

    /// Adds what a node costs to the mission's tally, once for a token of [`fresh_token`], which DynamoDB knows for ten
    /// minutes: a call whose answer was lost is repeated with the same token and values.
    ///
    /// # Errors
    /// [`CloudError`]; then it may have been added.
    pub async fn add_cost(
        &self,
        mission: &Mission,
        instance: &str,
        cost: &NodeCost,
        token: &str,
    ) -> Result<(), CloudError> {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let expression = Expression::default()
            .add(item::NODE_SECONDS, number(cost.time_s))
            .add(item::UNPRICED_SECONDS, number(cost.unpriced_s))
            .add(item::COST, number(cost.cost.0));
        let shard = shard_of_name(instance, mission.tally_shards);
        let items = [update(&self.tables.missions, tally_key(&mission.id, shard), &expression)?];
        self.transact(&items, token, Some((&mission.id, vec![shard]))).await.map(|_| ())
    }

    /// Writes the counters into the mission's row if they are newer than its own.
    ///
    /// If the counters in the row are strings, they stay strings: the scripts of the first version read them.
    ///
    /// # Errors
    /// [`CloudError`]; a newer row is not an error.
    pub async fn roll_up(&self, mission: &Mission, total: Tally) -> Result<(), CloudError> {
        let expression = counters(mission, total).set_if_absent(item::TALLY_BASE, number(mission.tally_base)).when(
            "attribute_exists({})",
            item::MISSION_KEY,
            None,
        );
        let expression = match mission.seen.as_ref().map(|seen| &seen.tally_seq) {
            // Not this version's type: text cannot be compared with a number.
            Some(form @ (Form::Text(_) | Form::Other(_))) => expression.if_unchanged(item::TALLY_SEQ, form),
            _ => expression.when_any(vec![
                vec![("attribute_not_exists({})", item::TALLY_SEQ, None)],
                vec![("{} < ?", item::TALLY_SEQ, Some(number(total.seq)))],
            ]),
        };
        self.update_mission(&mission.id, &expression).await.map(|_| ())
    }

    /// Updates a mission's row; `false` if the condition did not hold.
    pub(super) async fn update_mission(&self, id: &MissionId, expression: &Expression) -> Result<bool, CloudError> {
        self.update_item(id.as_str(), expression).await
    }

    /// Updates an item of the missions table; `false` if the condition did not hold. Retries while transactions on the
    /// item, including their checks, conflict.
    pub(super) async fn update_item(&self, key: &str, expression: &Expression) -> Result<bool, CloudError> {
        let mut tries = 0;
        loop {
            let key = Item::from([(item::MISSION_KEY.to_owned(), text(key))]);
            let answer = expression
                .on(self.client.update_item().table_name(&self.tables.missions).set_key(Some(key)))
                .send()
                .await;
            tries += 1;
            let Err(error) = answer else { return Ok(true) };
            if matches!(error.as_service_error(), Some(UpdateItemError::ConditionalCheckFailedException(_))) {
                return Ok(false);
            }
            let error = self.missions_error("UpdateItem", error);
            if error.kind != Kind::Conflict || tries >= CONFLICT_ATTEMPTS_MAX {
                return Err(error);
            }
            tokio::time::sleep(backoff::delay(tries, rand::random())).await;
        }
    }

    /// Works like [`Self::update_item`], for additions. The SDK repeats a call whose answer was lost; only a
    /// transaction is then applied once.
    pub(super) async fn update_item_once(&self, key: &str, expression: &Expression) -> Result<bool, CloudError> {
        let key = Item::from([(item::MISSION_KEY.to_owned(), text(key))]);
        let item = update(&self.tables.missions, key, expression)?;
        let token = fresh_token();
        Ok(self.transact(&[item], &token, None).await? == Transacted::Written)
    }

    pub(super) fn missions_error<E>(
        &self,
        operation: &'static str,
        error: aws_sdk_dynamodb::error::SdkError<E>,
    ) -> CloudError
    where
        E: aws_sdk_dynamodb::error::ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        CloudError::sdk(operation, format!("table {}", self.tables.missions), error)
    }
}

pub(super) fn mission_key(id: &MissionId) -> Item {
    Item::from([(item::MISSION_KEY.to_owned(), text(id.as_str()))])
}

/// Reopens a mission: increments `opened`, and its notification is sent again. Readers of the old row must read it
/// again.
pub(super) fn opened(expression: Expression, mission: &Mission) -> Expression {
    let expression = expression.set(item::NOTIFIED, text("No")).remove(item::CLOSED).remove(item::MANIFEST_PROGRESS);
    let expression = match mission.seen.as_ref().map(|seen| &seen.opened) {
        // `ADD` needs a number.
        Some(Form::Text(_) | Form::Other(_)) => expression.set(item::OPENED, number(mission.opened + 1)),
        _ => expression.add(item::OPENED, 1),
    };
    expression.when("attribute_exists({})", item::MISSION_KEY, None)
}

/// Requires that the mission's cancellation has not changed since it was read, and that it was not reopened.
pub(super) fn mission_as_seen(expression: Expression, mission: &Mission) -> Expression {
    let Some(seen) = &mission.seen else {
        let cancelled = mission.cancelled_at.clone().map_or(Form::Absent, Form::Text);
        return expression.if_unchanged(item::CANCELLED_AT, &cancelled);
    };
    expression.if_unchanged(item::CANCELLED_AT, &seen.cancelled_at).if_unchanged(item::OPENED, &seen.opened)
}

/// Sets the row's counters, as numbers or strings like the existing ones.
pub(super) fn counters(mission: &Mission, total: Tally) -> Expression {
    let count = |n: u64| if mission.counts_as_strings { text(n.to_string()) } else { number(n) };
    Expression::default()
        .set(item::TRANS_OK, count(total.ok))
        .set(item::TRANS_FAILED, count(total.failed))
        .set(item::TIME_COST, text(seconds(total.time_cost_ms).to_string()))
        .set(item::TIME_COST_MS, number(total.time_cost_ms))
        .set(item::TALLY_SEQ, number(total.seq))
}
