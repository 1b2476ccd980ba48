//! Downloads or uploads one object, for `scripts/bench --transfer`.
//!
//! ```text
//! transfer get BUCKET KEY FILE
//! transfer put BUCKET KEY FILE
//! ```

use std::error::Error;
use std::path::Path;

use lighthpc::backend::Wire;
use lighthpc::backend::store::Store;

/// As the program has them: `src/command/mod.rs`.
const THREADS: usize = 2;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, bucket, key, file] = arguments.as_slice() else {
        return Err("usage: transfer get|put BUCKET KEY FILE".into());
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    runtime.block_on(async {
        let store = Store::new(&Wire::aws().await?);
        match what.as_str() {
            "get" => drop(store.download(bucket, key, Path::new(file)).await?),
            "put" => drop(store.put_file(bucket, key, Path::new(file)).await?),
            other => return Err(format!("{other}: neither get nor put").into()),
        }
        Ok(())
    })
}
