//! The workload of a simulated task.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use lighthpc::domain::progress::Progress;
use lighthpc::workload::{Exit, Script, ScriptRun};

use crate::plan::{Dice, Does, Fault};
use crate::world::World;

/// The bytes of a task's input.
pub(crate) fn input_of(src: &str) -> String {
    format!("input of {src}\n")
}

/// The bytes of a task's result.
pub(crate) fn result_of(src: &str) -> String {
    format!("result of {}", input_of(src))
}

/// Returns the number at the end of a task's name.
fn number_of(src: &str) -> u64 {
    src.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Makes the workload.
pub(crate) fn script(world: &Arc<World>) -> Script {
    let world = Arc::clone(world);
    Script::new(move |given| run(Arc::clone(&world), given))
}

async fn run(world: Arc<World>, given: ScriptRun) -> io::Result<Exit> {
    let (src, attempt) = (given.env.src.to_string(), given.env.attempt.0);
    let task = number_of(&src);
    let does = world.faults().filter(|_| world.is_hostile()).find_map(|fault| match fault {
        Fault::Workload { task: of, attempt: at, does } if *of == task && *at == attempt => Some(*does),
        _ => None,
    });
    if let Some(does) = does {
        world.saw(&format!("workload {}", format!("{does:?}").split('(').next().unwrap_or_default()));
    }
    let mission = &world.plan.mission;
    let whole = Dice::new(world.plan.seed, &src).time(mission.takes.0, mission.takes.1);
    let saved = given.env.checkpoint().join("done");
    let begun = std::fs::read_to_string(&saved).ok().and_then(|text| text.parse().ok()).unwrap_or(0_u32);
    let exited = |code: i32| Exit::Exited { code: Some(code), signal: None, out_of_memory: false };
    for step in begun..STEPS {
        let stop = given.stop.clone();
        tokio::select! {
            () = tokio::time::sleep(whole / STEPS) => {}
            () = stop.cancelled(), if does != Some(Does::Deaf) => return Ok(Exit::Stopped),
        }
        given.progress.send_replace(Progress::running(u8::try_from(step * 100 / STEPS).unwrap_or(100)));
        if mission.has_checkpoints {
            // By a rename, as a careful program does.
            let part = saved.with_extension("part");
            std::fs::write(&part, (step + 1).to_string())?;
            std::fs::rename(&part, &saved)?;
        }
        match does.filter(|_| step == STEPS / 2) {
            Some(Does::Exit(code)) => return Ok(exited(code)),
            Some(Does::Hang) => {
                given.stop.cancelled().await;
                return Ok(Exit::Stopped);
            }
            Some(Does::DiskFull) => return Err(io::ErrorKind::StorageFull.into()),
            Some(Does::NoResult | Does::Deaf) | None => {}
        }
    }
    if begun > 0 {
        world.saw("resumed from a checkpoint");
    }
    if does != Some(Does::NoResult) {
        let input = std::fs::read_to_string(given.env.input())?;
        std::fs::write(given.env.output(), format!("result of {input}"))?;
    }
    // A program takes a moment to end.
    tokio::time::sleep(Duration::from_millis(5)).await;
    Ok(exited(0))
}

const STEPS: u32 = 10;
