//! The mission's row and its tally items.

use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::AttributeValue;

use super::Ledger;
use super::expression::Expression;
use super::item::{self, Row, number, text};
use super::key::Item;
use super::transaction::{CONFLICT_ATTEMPTS_MAX, Transacted, tally_key, update};
use crate::backend::{CloudError, Kind};
use crate::domain::backoff;
use crate::domain::ids::MissionId;
use crate::domain::mission::{Mission, Tally, tally_shards_for};
use crate::domain::policy::Policy;
use crate::domain::value::Form;

/// What a new mission's row holds.
#[derive(Clone, Debug)]
pub struct NewMission {
    /// The key.
    pub id: MissionId,
    /// How many tasks it has.
    pub trans_number: u64,
    /// The number of tally items. Fixed for the mission's life: a commit is counted by it.
    pub tally_shards: u32,
    /// The workload's command line, for `sh -c`.
    pub exec: Option<String>,
    /// What it is called, for people.
    pub name: Option<String>,
    /// How many nodes serve it; `None`: a node for each task.
    pub nodes: Option<u32>,
    /// How many tasks such a node works at, at a time.
    pub slots: Option<u16>,
    /// Whether objects that are put below its prefix become tasks of it; `None`: they do, as for the first version.
    pub uploads: Option<bool>,
    /// What it may cost.
    pub policy: Policy,
    /// Now, RFC 3339 UTC.
    pub now: String,
}

impl NewMission {
    /// Makes a mission of so many tasks, of which the rest is left to settings.
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
            policy: Policy::default(),
            now: String::new(),
        }
    }
}

impl Ledger {
    /// Reads a mission's row consistently; `None` if there is none.
    ///
    /// # Errors
    /// [`CloudError`]; `NoTable` and `TableKey` if the table is not the expected one.
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

    /// Makes a mission's row; `false` if there is one already, which stays as it is.
    ///
    /// # Errors
    /// [`CloudError`]; `Invalid` if the id is not fit for a new mission: whoever asks a person for it has checked it before.
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

    /// Gives a mission another workload; `None`: the simulated one.
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

    /// Says whether objects that are put below a mission's prefix become tasks of it from now on.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn set_uploads(&self, id: &MissionId, are_taken: bool) -> Result<(), CloudError> {
        let expression = Expression::default().set(item::UPLOADS, text(if are_taken { "yes" } else { "no" }));
        let expression = expression.when("attribute_exists({})", item::MISSION_KEY, None);
        self.update_mission(id, &expression).await.map(|_| ())
    }

    /// Sets what a mission's nodes run, how many they are, and at how many tasks each works; what is `None` is removed.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if there is no such mission.
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

    /// Changes how many tasks a mission has, and opens it again, on condition that it still has as many as were seen.
    ///
    /// # Errors
    /// [`CloudError`]; `Ok(false)` if another has changed the number since.
    pub async fn resize_mission(&self, mission: &Mission, trans_number: u64) -> Result<bool, CloudError> {
        let expression = opened(Expression::default(), mission)
            .set(item::TRANS_NUMBER, number(trans_number))
            // As many as were meant so far: a larger number would mean other items.
            .set_if_absent(item::TALLY_SHARDS, number(mission.tally_shards.into()));
        let expression = match &mission.seen {
            Some(seen) => expression.if_unchanged(item::TRANS_NUMBER, &seen.trans_number),
            None => expression,
        };
        self.update_mission(&mission.id, &expression).await
    }

    /// Reads and sums the mission's tally items, consistently.
    ///
    /// The items are read one by one, not as one picture. That is enough: every committer reads after its own commit,
    /// so whoever commits last sees them all.
    ///
    /// # Errors
    /// [`CloudError`]; `Throttled` if DynamoDB leaves keys unread for about 10 s.
    pub async fn tally(&self, mission: &Mission) -> Result<Tally, CloudError> {
        let keys: Vec<Item> = (0..mission.tally_shards).map(|n| tally_key(&mission.id, n)).collect();
        let mut sum = [0_i64; 4];
        for keys in keys.chunks(100) {
            for row in self.batch_get(&self.tables.missions, keys.to_vec()).await? {
                for (all, one) in sum.iter_mut().zip(Row(&row).tally()) {
                    *all = all.saturating_add(one);
                }
            }
        }
        let [ok, failed, time_cost_s, seq] = sum.map(|count| u64::try_from(count).unwrap_or(0));
        Ok(Tally { ok, failed, time_cost_s, seq })
    }

    /// Writes the counters into the mission's row, if they are newer than what is there.
    ///
    /// A row whose counters are strings keeps strings: the first version's scripts read them.
    ///
    /// # Errors
    /// [`CloudError`]; a newer row is no error.
    pub async fn roll_up(&self, mission: &Mission, total: Tally) -> Result<(), CloudError> {
        let expression = counters(mission, total).set_if_absent(item::TALLY_BASE, number(mission.tally_base)).when(
            "attribute_exists({})",
            item::MISSION_KEY,
            None,
        );
        let expression = match mission.seen.as_ref().map(|seen| &seen.tally_seq) {
            // Not as this version writes it: text does not compare with a number.
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

    /// Updates an item of the missions table, a mission's or another; `false` if the condition did not hold. Again and again
    /// while transactions are in its way, those that check the item included.
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

    /// As [`Self::update_item`], for what counts up or down: the SDK repeats a call whose answer was lost, and only a
    /// transaction is then written once.
    pub(super) async fn update_item_once(&self, key: &str, expression: &Expression) -> Result<bool, CloudError> {
        let key = Item::from([(item::MISSION_KEY.to_owned(), text(key))]);
        let item = update(&self.tables.missions, key, expression)?;
        let token = format!("{:032x}", rand::random::<u128>());
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

/// Opens a mission: it is counted in `opened`, and its end is announced again. Whoever read the row before must read it again.
pub(super) fn opened(expression: Expression, mission: &Mission) -> Expression {
    let expression = expression.set(item::NOTIFIED, text("No")).remove(item::CLOSED).remove(item::MANIFEST_PROGRESS);
    let expression = match mission.seen.as_ref().map(|seen| &seen.opened) {
        // `ADD` takes numbers alone.
        Some(Form::Text(_) | Form::Other(_)) => expression.set(item::OPENED, number(mission.opened + 1)),
        _ => expression.add(item::OPENED, 1),
    };
    expression.when("attribute_exists({})", item::MISSION_KEY, None)
}

/// Requires that a mission is cancelled, or is not, just as it was seen, and was not opened since.
pub(super) fn mission_as_seen(expression: Expression, mission: &Mission) -> Expression {
    let Some(seen) = &mission.seen else {
        let cancelled = mission.cancelled_at.clone().map_or(Form::Absent, Form::Text);
        return expression.if_unchanged(item::CANCELLED_AT, &cancelled);
    };
    expression.if_unchanged(item::CANCELLED_AT, &seen.cancelled_at).if_unchanged(item::OPENED, &seen.opened)
}

/// Sets the row's counters in the row's own style.
pub(super) fn counters(mission: &Mission, total: Tally) -> Expression {
    let count = |n: u64| if mission.counts_as_strings { text(n.to_string()) } else { number(n) };
    Expression::default()
        .set(item::TRANS_OK, count(total.ok))
        .set(item::TRANS_FAILED, count(total.failed))
        .set(item::TIME_COST, text(total.time_cost_s.to_string()))
        .set(item::TALLY_SEQ, number(total.seq))
}
