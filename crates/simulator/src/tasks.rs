//! The mission of a simulation, and its tasks: their names, inputs, and results.

use std::collections::BTreeMap;

use lighthpc::domain::ids::SrcId;
use lighthpc::domain::work::{Inputs, ObjectName, Work};
use local_cloud::SOURCE_BUCKET;

use crate::plan::MissionPlan;

/// The mission of the simulation.
pub(crate) const MISSION: &str = "M";

/// The name of the n-th task.
pub(crate) fn name_of(plan: &MissionPlan, number: u64) -> SrcId {
    let is_inside = plan.has_folder && number + 1 == plan.tasks;
    let name =
        if is_inside { format!("{MISSION}/task-0/{INSIDE}-{number}") } else { format!("{MISSION}/task-{number}") };
    SrcId::new(name).expect("a legal name")
}

/// The bytes of a task's input.
pub(crate) fn input_of(src: &str) -> String {
    format!("input of {src}\n")
}

/// The parameter that stands for an input.
pub(crate) const PARAM: &str = "text";

/// What a task works on, if that is not the object of its name. In missions that take uploads, events make the tasks.
pub(crate) fn work_of(plan: &MissionPlan, src: &SrcId) -> Option<Work> {
    if !plan.has_forms || plan.uploads {
        return None;
    }
    let object = |key: &str| ObjectName { bucket: SOURCE_BUCKET.to_owned(), key: key.to_owned() };
    match number_of(src.as_str()) % 3 {
        1 => Some(Work::of_params(1, BTreeMap::from([(PARAM.to_owned(), input_of(src.as_str()))]))),
        2 => {
            let objects = vec![object(name_of(plan, 0).as_str()), object(src.as_str())];
            Some(Work { inputs: Inputs::Several(objects), ..Work::default() })
        }
        _ => None,
    }
}

/// The files of a task's result, by name; one without a name: the result is a file.
pub(crate) fn result_of(plan: &MissionPlan, src: &str) -> Vec<(String, String)> {
    let text = format!("result of {}", input_of(src));
    if plan.has_folder && src == name_of(plan, 0).as_str() {
        let inside = format!("{INSIDE}-{}", plan.tasks - 1);
        return vec![("a".to_owned(), text.clone()), (inside, text)];
    }
    vec![(String::new(), text)]
}

/// A file of the folder.
const INSIDE: &str = "part";

/// Returns the number at the end of a task's name.
pub(crate) fn number_of(src: &str) -> u64 {
    src.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
