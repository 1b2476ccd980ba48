//! The examples at the top of each command's `--help`.

pub(super) const PROGRAM: &str = "Examples:
  lighthpc run --local input/*.txt -- ./work.sh      on this computer
  lighthpc submit input/*.txt --nodes 20             on AWS
  lighthpc status M001                               how far, what failed, when it is done
  lighthpc wait M001 && lighthpc fetch M001 --to results";

pub(super) const RUN: &str = "Examples:
  lighthpc run --local input/*.txt -- ./work.sh        one task per file, on this computer
  lighthpc run --local --slots 4 -- ./work.sh          continue; run four tasks at a time
  lighthpc run --local --csv t.csv -- ./work.sh {param.alpha}
                                                       one task per row of a table
  lighthpc run                                         on a node: run the task in the instance's tag";

pub(super) const STATUS: &str = "Examples:
  lighthpc status                 list the missions
  lighthpc status M001            one mission: counts, failures by reason, time left
  lighthpc status M001 --failed   and its failed tasks
  lighthpc status M001 --watch    a live screen
  lighthpc status --local         the local mission in ./lighthpc-local";

pub(super) const LIST: &str = "Examples:
  lighthpc list M001 --failed                      failed tasks, and why
  lighthpc list M001 --name 'M001/sample1*'        by name
  lighthpc list M001 --csv > tasks.csv             for a spreadsheet";

pub(super) const EXPLAIN: &str = "Examples:
  lighthpc explain M001 sample7.txt
  lighthpc explain --local local sample7.txt       of a local mission";

pub(super) const LOGS: &str = "Examples:
  lighthpc logs M001 sample7.txt --tail 20
  lighthpc logs M001 sample7.txt --follow          while it runs
  lighthpc logs M001 --failed                      of all failed tasks";

pub(super) const WAIT: &str = "Examples:
  lighthpc wait M001 && lighthpc fetch M001 --to results
  lighthpc wait M001 --timeout 8h --on-end 'mail -s \"$LIGHTHPC_FAILED failed\" me@example.org'
Exit codes: 0 all tasks are done, 20 some failed, 32 the timeout is over, 130 interrupted.";

pub(super) const REPORT: &str = "Examples:
  lighthpc report M001                             M001.html: open it in a browser
  lighthpc report M001 --format perfetto           M001.json: open it in ui.perfetto.dev
  lighthpc report --local local -o report.html     of a local mission";

pub(super) const FETCH: &str = "Examples:
  lighthpc fetch M001 --to results
  lighthpc fetch --local local --to results        of a local mission";

pub(super) const SUBMIT: &str = "Examples:
  lighthpc submit input/*.txt                         upload the files; one node per task
  lighthpc submit s3://my-bucket/reads/ --nodes 20     objects of a prefix; 20 nodes
  lighthpc submit s3://my-bucket/reads/ --dry-run      show tasks, launch requests and prices
  lighthpc submit --array 1-500 --nodes 20 -- ./work.sh {index}
                                                       one task per number";

pub(super) const SWEEP: &str = "Examples:
  lighthpc sweep                  one sweep
  lighthpc sweep --watch          a sweep every minute, until Ctrl-C";

pub(super) const REDRIVE: &str = "Examples:
  lighthpc redrive M001                            all failed tasks of a mission
  lighthpc redrive M001 --verdict oom              those that ran out of memory
  lighthpc redrive M001 M001/sample7.txt           one task";

pub(super) const CANCEL: &str = "Examples:
  lighthpc cancel M001";

pub(super) const DOCTOR: &str = "Examples:
  lighthpc doctor                 check the settings of this computer or node, and the rights in AWS
  lighthpc doctor --bake          check an image while it is built";
