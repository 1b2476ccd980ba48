//! The names and credentials that a client needs to reach the local cloud.

/// The bucket of the inputs, and its folder.
pub const SOURCE_BUCKET: &str = "source";
/// The bucket of the results, and its folder.
pub const RESULT_BUCKET: &str = "results";
/// The region everything is in.
pub const REGION: &str = "us-east-1";
/// The topic that is always there.
pub const TOPIC_ARN: &str = "arn:aws:sns:us-east-1:000000000000:lighthpc-local";
/// The access key the local S3 accepts; it opens nothing anywhere else.
pub const ACCESS_KEY: &str = "AKIALIGHTHPCLOCAL000";
/// The secret that goes with [`ACCESS_KEY`].
pub const SECRET_KEY: &str = "no-secret-for-this-machine-only";
