//! The mission of a simulation, and its tasks: their names, inputs, and results.

use lighthpc::domain::ids::SrcId;

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
