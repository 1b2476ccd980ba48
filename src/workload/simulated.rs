//! The article's simulated workload: steps of random length, with a progress line after each.

use std::io;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Bounds, Exit, WorkloadEnv};
use crate::domain::keys::digest_hex;
use crate::domain::progress::Progress;

/// The settings of the simulated workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Simulation {
    /// The number of steps. Default 15.
    pub steps: u32,
    /// The minimum and the maximum duration of a step in seconds. Default 12 to 20.
    pub step_seconds: (f64, f64),
    /// The seed. With the same seed, each task has the same steps.
    pub seed: Option<u64>,
}

impl Default for Simulation {
    fn default() -> Self {
        Self { steps: 15, step_seconds: (12.0, 20.0), seed: None }
    }
}

impl Simulation {
    pub(super) async fn run(
        &self,
        env: &WorkloadEnv,
        bounds: Bounds,
        progress: &watch::Sender<Progress>,
        stop: &CancellationToken,
    ) -> io::Result<Exit> {
        let lengths = self.lengths(env.src.as_str());
        let limit = bounds.time_limit.unwrap_or(Duration::MAX);
        let steps = async {
            for (done, length) in (1_u64..).zip(&lengths) {
                tokio::time::sleep(*length).await;
                let pct = done * 100 / lengths.len() as u64;
                progress.send_replace(Progress::running(u8::try_from(pct).unwrap_or(100)));
            }
        };
        // All arms may be dropped: a step is only a delay.
        let ended = tokio::select! {
            () = steps => Exit::Exited { code: Some(0), signal: None, out_of_memory: false },
            () = tokio::time::sleep(limit) => Exit::TimedOut,
            () = stop.cancelled() => Exit::Stopped,
        };
        if matches!(ended, Exit::Exited { .. }) {
            let total: f64 = lengths.iter().map(Duration::as_secs_f64).sum();
            let text = format!(
                "simulated result of {}\nattempt {}, {} steps, {total:.1} s\n",
                env.src,
                env.attempt,
                lengths.len()
            );
            lighthpc_runtime::write(env.output(), text).await?;
        }
        Ok(ended)
    }

    /// Returns the durations of the steps, which depend only on the seed and the task.
    fn lengths(&self, src: &str) -> Vec<Duration> {
        let mut rng = match self.seed {
            None => StdRng::seed_from_u64(rand::random()),
            Some(seed) => {
                let digest = digest_hex(&[&seed.to_string(), src], 16);
                StdRng::seed_from_u64(u64::from_str_radix(&digest, 16).unwrap_or(seed))
            }
        };
        let (shortest, longest) = self.step_seconds;
        (0..self.steps).map(|_| Duration::from_secs_f64(rng.random_range(shortest..=longest))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_itself_per_task() {
        let simulation = Simulation { seed: Some(7), ..Simulation::default() };
        assert_eq!(simulation.lengths("a"), simulation.lengths("a"));
        assert_ne!(simulation.lengths("a"), simulation.lengths("b"));
        assert_eq!(simulation.lengths("a").len(), 15);
        assert!(simulation.lengths("a").iter().all(|l| (12.0..=20.0).contains(&l.as_secs_f64())));
    }
}
