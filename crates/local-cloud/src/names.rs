//! The names and credentials that a client needs to reach the local cloud.

/// The bucket of the inputs, and the name of its folder.
pub const SOURCE_BUCKET: &str = "source";
/// The bucket of the results, and the name of its folder.
pub const RESULT_BUCKET: &str = "results";
/// The only region.
pub const REGION: &str = "us-east-1";
/// The only topic; it always exists.
pub const TOPIC_ARN: &str = "arn:aws:sns:us-east-1:000000000000:lighthpc-local";
/// The access key that the local S3 accepts; AWS does not know it.
pub const ACCESS_KEY: &str = "AKIALIGHTHPCLOCAL000";
/// The secret that goes with [`ACCESS_KEY`].
pub const SECRET_KEY: &str = "no-secret-for-this-machine-only";
