//! An Indexed Job of Kubernetes: an index for each encoder. Exit code 75 starts an index again, however often; a command line
//! that is wrong ends it at once.

use super::{JobList, Place, branches, short_name};

const JOB: &str = include_str!("kubernetes.yaml");

/// The document for `kubectl apply`. A JSON string is a string of YAML too.
pub(super) fn job(list: &JobList, place: &Place) -> Result<String, serde_json::Error> {
    let tasks = list.tasks();
    let text = |text: &str| serde_json::to_string(text);
    let script = format!("case $JOB_COMPLETION_INDEX in\n{}esac\n", branches(&tasks));
    let (mut mounts, mut volumes) = (String::new(), String::new());
    let number = |place: usize| if place == 0 { "data".to_owned() } else { format!("data-{}", place + 1) };
    let inputs = place.inputs.iter().enumerate().map(|(place, path)| (number(place), path));
    for (claim, path) in std::iter::once(("runs".to_owned(), &place.folder)).chain(inputs) {
        let path = text(&path.display().to_string())?;
        mounts += &format!("            - {{name: {claim}, mountPath: {path}, readOnly: {}}}\n", claim != "runs");
        volumes += &format!("        - {{name: {claim}, persistentVolumeClaim: {{claimName: sdclr-{claim}}}}}\n");
    }
    Ok(JOB
        .replace("@NAME@", &short_name(&list.suite))
        .replace("@COUNT@", &tasks.len().to_string())
        .replace("@SCRIPT@", &text(&script)?)
        .replace("@MOUNTS@\n", &mounts)
        .replace("@VOLUMES@\n", &volumes))
}
