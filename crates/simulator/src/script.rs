//! The workload of a simulated task.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use lighthpc::domain::progress::Progress;
use lighthpc::workload::{Exit, Script, ScriptRun};

use crate::check;
use crate::lock::locked;
use crate::plan::{Dice, Does, Fault};
use crate::tasks::{PARAM, number_of, result_of};
use crate::who::Who;
use crate::world::World;

/// Makes the workload of a process.
pub(crate) fn script(world: &Arc<World>, who: Who) -> Script {
    let world = Arc::clone(world);
    Script::new(move |given| run(Arc::clone(&world), who, given))
}

async fn run(world: Arc<World>, who: Who, given: ScriptRun) -> io::Result<Exit> {
    let (src, attempt) = (given.env.src.to_string(), given.env.attempt.0);
    let started = world.time();
    let _running = check::workload_starts(&world, who, &src, attempt);
    let exit = steps(&world, who, &given, &src, attempt).await;
    check::workload_ends(&world, &src, &exit);
    locked(&world.work).entry(who).or_insert((started, started)).1 = world.time();
    exit
}

async fn steps(world: &World, who: Who, given: &ScriptRun, src: &str, attempt: u64) -> io::Result<Exit> {
    let task = number_of(src);
    let does = world.faults().filter(|_| world.is_hostile()).find_map(|fault| match fault {
        Fault::Workload { task: of, attempt: at, does } if *of == task && *at == attempt => Some(*does),
        _ => None,
    });
    if let Some(does) = does {
        world.saw(does.name());
    }
    let mission = &world.plan.mission;
    let whole = Dice::new(world.plan.seed, src).time(mission.takes.0, mission.takes.1);
    let saved = given.env.checkpoint().join("done");
    let begun = std::fs::read_to_string(&saved).ok().and_then(|text| text.parse().ok()).unwrap_or(0_u32);
    let exited = |code: i32| Exit::Exited { code: Some(code), signal: None, out_of_memory: false };
    for step in begun..STEPS {
        tokio::select! {
            () = tokio::time::sleep(whole / STEPS) => {}
            () = given.stop.cancelled(), if does != Some(Does::Deaf) => return Ok(Exit::Stopped),
        }
        check::workload_runs(world, who, src, attempt);
        given.progress.send_replace(Progress::running(u8::try_from(step * 100 / STEPS).unwrap_or(100)));
        if mission.has_checkpoints {
            // By a rename, as a careful program does.
            let part = saved.with_extension("part");
            lighthpc_runtime::write(&part, (step + 1).to_string()).await?;
            std::fs::rename(&part, &saved)?;
        }
        match does.filter(|_| step == STEPS / 2) {
            Some(Does::Exit(code)) => return Ok(exited(code)),
            Some(Does::Hang) => loop {
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_mins(1)) => check::workload_runs(world, who, src, attempt),
                    () = given.stop.cancelled() => return Ok(Exit::Stopped),
                }
            },
            Some(Does::DiskFull) => return Err(io::ErrorKind::StorageFull.into()),
            Some(Does::NoResult | Does::Deaf) | None => {}
        }
    }
    if begun > 0 {
        world.saw("workload resumed from a checkpoint");
    }
    if does != Some(Does::NoResult) {
        let input = input(world, given, src)?;
        for (name, _) in result_of(mission, src) {
            let text = format!("result of {input}");
            if name.is_empty() {
                lighthpc_runtime::write(given.env.output(), text).await?;
            } else {
                std::fs::create_dir_all(given.env.output())?;
                lighthpc_runtime::write(given.env.output().join(name), text).await?;
            }
        }
    }
    // A program takes a moment to end.
    tokio::time::sleep(Duration::from_millis(5)).await;
    Ok(exited(0))
}

/// Reads the input of a task: its own file, or its parameter.
fn input(world: &World, given: &ScriptRun, src: &str) -> io::Result<String> {
    match given.env.keys.len() {
        0 => {
            world.saw("task without an object");
            given.env.work.params.get(PARAM).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
        }
        1 => std::fs::read_to_string(given.env.input_of(src)),
        _ => {
            world.saw("task with two objects");
            std::fs::read_to_string(given.env.input_of(src))
        }
    }
}

const STEPS: u32 = 10;
