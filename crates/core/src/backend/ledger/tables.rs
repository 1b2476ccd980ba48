//! Creates the tables of the in-process cloud and of tests. On AWS, the stack creates them.

use aws_sdk_dynamodb::error::BuildError;
use aws_sdk_dynamodb::operation::create_table::CreateTableError;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType, Projection, ProjectionType,
    ScalarAttributeType,
};

use super::Ledger;
use super::item;
use super::open::INDEX;
use crate::backend::CloudError;
use crate::backend::Kind;

impl Ledger {
    /// Creates both tables, on demand, if they do not exist; the tasks table with its index of open tasks.
    ///
    /// # Errors
    /// [`CloudError`].
    pub async fn create_tables(&self) -> Result<(), CloudError> {
        let index = open_index().map_err(|error| invalid(&self.tables.tasks, &error))?;
        self.create_table(&self.tables.tasks, &[item::SRC, item::OPEN_IN, item::OPEN_AS], Some(index)).await?;
        self.create_table(&self.tables.missions, &[item::MISSION_KEY], None).await
    }

    /// Creates a table. The first key attribute is the table's own key.
    async fn create_table(
        &self,
        table: &str,
        attributes: &[&str],
        index: Option<GlobalSecondaryIndex>,
    ) -> Result<(), CloudError> {
        let key = attributes.first().copied().unwrap_or_default();
        let definitions: Result<Vec<_>, _> = attributes.iter().map(|name| text_attribute(name)).collect();
        let answer = self
            .client
            .create_table()
            .table_name(table)
            .set_attribute_definitions(Some(definitions.map_err(|error| invalid(table, &error))?))
            .key_schema(key_part(key, KeyType::Hash).map_err(|error| invalid(table, &error))?)
            .set_global_secondary_indexes(index.map(|index| vec![index]))
            .billing_mode(BillingMode::PayPerRequest)
            .send()
            .await;
        match answer {
            Err(error) if !error.as_service_error().is_some_and(CreateTableError::is_resource_in_use_exception) => {
                Err(CloudError::sdk("CreateTable", format!("table {table}"), error))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

fn open_index() -> Result<GlobalSecondaryIndex, BuildError> {
    GlobalSecondaryIndex::builder()
        .index_name(INDEX)
        .key_schema(key_part(item::OPEN_IN, KeyType::Hash)?)
        .key_schema(key_part(item::OPEN_AS, KeyType::Range)?)
        .projection(Projection::builder().projection_type(ProjectionType::KeysOnly).build())
        .build()
}

fn text_attribute(name: &str) -> Result<AttributeDefinition, BuildError> {
    AttributeDefinition::builder().attribute_name(name).attribute_type(ScalarAttributeType::S).build()
}

fn key_part(name: &str, part: KeyType) -> Result<KeySchemaElement, BuildError> {
    KeySchemaElement::builder().attribute_name(name).key_type(part).build()
}

fn invalid(table: &str, error: &BuildError) -> CloudError {
    CloudError::new(Kind::Invalid, "CreateTable", table, error.to_string())
}
