//! `lighthpc report`: writes what happened in a mission, as one HTML file, as CSV, or as a trace.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::failure::Failure;
use super::place::{MissionPlace, PlaceArgs};
use super::{listing, logs, screen};
use crate::clock;
use crate::command::exit::ExitCode;
use crate::report::{Collector, MissionReport, html, perfetto};
use crate::summary::Selection;

/// The most failed tasks whose logs are read for the report, and the last bytes and lines of each.
const TAILS_MAX: usize = 20;
const TAIL_BYTES: u64 = 32 * 1024;
const TAIL_LINES: usize = 20;

/// The format of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ReportFormat {
    /// One HTML file.
    Html,
    /// A line per task.
    Csv,
    /// A trace for ui.perfetto.dev.
    Perfetto,
}

/// The arguments of `report`.
#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// Mission id
    #[arg(value_name = "MISSION")]
    pub(super) mission: String,
    /// File to write; - is standard output (default: MISSION.html, MISSION.csv or MISSION.json in this folder)
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Format: html, csv, or perfetto (a trace for ui.perfetto.dev)
    #[arg(long, value_enum, default_value = "html", hide_possible_values = true, value_name = "FORMAT")]
    pub(super) format: ReportFormat,
    #[command(flatten)]
    pub(super) place: PlaceArgs,
}

pub(super) async fn run(args: ReportArgs) -> Result<ExitCode, Failure> {
    let place = args.place.open().await?;
    let mission = place.mission(&args.mission).await?;
    let (text, extension) = match args.format {
        ReportFormat::Csv => {
            let tasks = Selection::default().read(&place.backend, &mission).await?.tasks;
            (listing::csv(&tasks), "csv")
        }
        format => {
            let total = mission.total(place.backend.ledger.tally(&mission).await?);
            let mut collector = Collector::new(&mission, total, &clock::now_rfc3339());
            place.backend.ledger.each_task(Some(&mission.id), |task| collector.add(&task)).await?;
            let mut report = collector.finish();
            if format == ReportFormat::Html {
                read_tails(&place, &mut report).await;
                (html(&report), "html")
            } else {
                (perfetto(&report), "json")
            }
        }
    };
    let path = args.output.unwrap_or_else(|| {
        let name: String =
            mission.id.as_str().chars().map(|c| if c == '/' || c.is_control() { '_' } else { c }).collect();
        PathBuf::from(format!("{name}.{extension}"))
    });
    if path.as_os_str() == "-" {
        screen::csv_to_stdout(&text);
        return Ok(ExitCode::Ok);
    }
    write_whole(&path, text.as_bytes())?;
    screen::to_stdout(&format!("{} ({} bytes)\n", path.display(), text.len()));
    Ok(ExitCode::Ok)
}

/// Writes a file beside its place, and renames it: an older report stays until the new one is whole.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let is_plain = path.symlink_metadata().map_or(true, |meta| meta.is_file());
    // A device or a link is written to where it is.
    let part = if is_plain { path.with_added_extension("part") } else { path.to_owned() };
    let written = std::fs::File::create(&part).and_then(|mut file| file.write_all(bytes));
    let written = written.and_then(|()| if is_plain { std::fs::rename(&part, path) } else { Ok(()) });
    written.map_err(|error| {
        if is_plain {
            std::fs::remove_file(&part).ok();
        }
        let text = format!("{}: {error}", path.display());
        if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
            let failure = Failure::usage(text, "free space, or give a file on another disk with --output FILE");
            return Failure { exit: ExitCode::DiskFull, ..failure };
        }
        Failure::usage(text, "give a file that can be written, with --output FILE")
    })
}

/// Reads the ends of the logs of the first failed tasks. One that cannot be read is named only.
async fn read_tails(place: &MissionPlace, report: &mut MissionReport) {
    for task in report.failed.iter_mut().take(TAILS_MAX) {
        let Some((bucket, key)) =
            task.log.as_deref().and_then(|uri| uri.strip_prefix("s3://")).and_then(|rest| rest.split_once('/'))
        else {
            continue;
        };
        match place.backend.store.read_tail(bucket, key, TAIL_BYTES).await {
            Ok(bytes) => task.tail = Some(logs::tail(&bytes, TAIL_LINES)),
            Err(error) => screen::to_stderr(&format!("note: a log was not read: {error}\n")),
        }
    }
}
