//! Other users of the same machine: a work folder that they made, and a mission's folder that they may write to.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// An ordinary user, who is not this process's.
const OTHER: u32 = 65_534;

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn lighthpc(dir: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lighthpc"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("AWS_") || name.starts_with("LIGHTHPC_") || name == "SUDO_UID" {
            command.env_remove(&*name);
        }
    }
    command.envs(variables.iter().copied()).args(arguments).current_dir(dir).stdin(Stdio::null()).output().unwrap()
}

fn code_and_words(output: &Output) -> (i32, String) {
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: only root can make what is another user's");
    }
    is_root
}

/// Another user was there first: with a folder, with a link to a folder of this user's, or above it.
#[test]
fn a_work_folder_that_another_user_made_or_may_write_to_is_refused_at_once() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    chmod(dir.path(), 0o1777);
    let at = |name: &str| dir.path().join(name);
    for name in ["secret", "theirs", "open", "wide/work"] {
        std::fs::create_dir_all(at(name)).unwrap();
    }
    chmod(&at("open"), 0o777);
    chmod(&at("wide"), 0o777);
    chown(at("theirs"), Some(OTHER), Some(OTHER)).unwrap();
    symlink(at("secret"), at("link")).unwrap();
    std::os::unix::fs::lchown(at("link"), Some(OTHER), Some(OTHER)).unwrap();
    let aws = [("AWS_EC2_METADATA_DISABLED", "true"), ("AWS_REGION", "us-east-1")];
    for name in ["theirs", "theirs/below", "open", "wide/work", "link", "link/below"] {
        let work_dir = at(name).display().to_string();
        let arguments = ["run", "--no-terminate", "--src-id", "a", "--result-bucket", "r", "--work-dir", &work_dir];
        let (code, words) = code_and_words(&lighthpc(dir.path(), &arguments, &aws));
        assert_eq!(code, 2, "{name}: {words}");
        assert!(words.contains("is not safe") && words.contains("hint"), "{name}: {words}");
    }
    for name in ["secret", "theirs", "open", "wide/work"] {
        assert_eq!(std::fs::read_dir(at(name)).unwrap().count(), 0, "nothing was written to {name}");
    }
}

/// The folder names the program; whoever may write to it chooses what runs.
#[test]
fn a_local_mission_of_another_user_is_not_run_unless_it_is_trusted() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mission = dir.path().join("lighthpc-local");
    std::fs::write(dir.path().join("a.txt"), "a").unwrap();
    let exec = format!("echo ran >> '{}'; exit 3", dir.path().join("ran").display());
    let ran = || std::fs::read_to_string(dir.path().join("ran")).unwrap_or_default().lines().count();
    // The first run names the program; the others take it from the folder.
    let run = |arguments: &[&str], variables: &[(&str, &str)]| {
        let all = [&["run", "--local=lighthpc-local"], arguments].concat();
        code_and_words(&lighthpc(dir.path(), &all, variables))
    };
    assert_eq!(run(&["a.txt", "--exec", &exec], &[]).0, 20, "the workload fails, so that it is run again");
    let refused = |variables: &[(&str, &str)], what: &str| {
        let before = ran();
        let (code, words) = run(&[], variables);
        assert_eq!((code, ran()), (2, before), "{what}: {words}");
        assert!(words.contains("--trust-folder=") && words.contains(what), "{what}: {words}");
    };
    let runs = |arguments: &[&str], variables: &[(&str, &str)]| {
        let before = ran();
        let (code, words) = run(arguments, variables);
        assert!(code == 20 && ran() > before, "{arguments:?} {variables:?}: {code} {words}");
    };
    runs(&[], &[]);

    chown(&mission, Some(OTHER), Some(OTHER)).unwrap();
    refused(&[], "belongs to user 65534");
    refused(&[("LIGHTHPC_TRUST_FOLDER", "/elsewhere,other")], "belongs to user 65534");
    refused(&[("SUDO_UID", "65533")], "belongs to user 65534");
    let looked = lighthpc(dir.path(), &["status", "--local"], &[]);
    assert!(looked.status.success(), "a look runs nothing: {looked:?}");
    runs(&["--trust-folder=lighthpc-local"], &[]);
    runs(&[], &[("LIGHTHPC_TRUST_FOLDER", &format!("/elsewhere,{}", mission.display()))]);
    runs(&["--trust-folder=*"], &[]);
    runs(&[], &[("SUDO_UID", "65534")]);

    chown(&mission, Some(0), Some(0)).unwrap();
    for (path, mode, back) in
        [("", 0o777, 0o755), (".lighthpc", 0o1777, 0o755), (".lighthpc/dynamo.sqlite", 0o666, 0o644)]
    {
        chmod(&mission.join(path), mode);
        refused(&[], "is writable by other users");
        chmod(&mission.join(path), back);
    }
    chown(mission.join(".lighthpc/dynamo.sqlite"), Some(OTHER), None).unwrap();
    refused(&[], "belongs to user 65534");
    chown(mission.join(".lighthpc/dynamo.sqlite"), Some(0), None).unwrap();
    runs(&[], &[]);
}

/// What a node fetches and makes is for nobody else to read, whatever the umask.
#[test]
fn nobody_else_reads_an_attempts_folder() {
    let dir = tempfile::tempdir().unwrap();
    let work = dir.path().join("new/work");
    lighthpc::workload::lock_work_dir(&work, "t").unwrap();
    let src = lighthpc::domain::ids::SrcId::new("a").unwrap();
    let attempt = lighthpc::domain::ids::AttemptNumber(1);
    let env = lighthpc::workload::WorkloadEnv::prepare(&work, "t", src, None, attempt).unwrap();
    for path in [work.as_path(), work.parent().unwrap(), env.folder()] {
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o700, "{}", path.display());
    }
}

/// With a umask of 002, as many systems give it, the folder would be the group's too, and the next run would refuse it.
#[test]
fn the_folder_of_a_local_mission_is_no_groups_whatever_the_umask() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.txt"), "a").unwrap();
    let line = format!(
        r#"umask 0; exec '{}' run --local=above/mission a.txt --exec 'cp "$LIGHTHPC_INPUT" "$LIGHTHPC_OUTPUT"'"#,
        env!("CARGO_BIN_EXE_lighthpc")
    );
    for _ in 0..2 {
        let output = Command::new("sh").args(["-c", &line]).current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let mission = dir.path().join("above/mission");
    let inside = std::fs::read_dir(mission.join(".lighthpc")).unwrap().map(|entry| entry.unwrap().path());
    for path in [dir.path().join("above"), mission.clone(), mission.join(".lighthpc")].into_iter().chain(inside) {
        assert_eq!(path.symlink_metadata().unwrap().mode() & 0o022, 0, "{}", path.display());
    }
}

/// With sudo, the user's folder is trusted to name the program; its links still lead root nowhere.
#[test]
fn a_link_of_the_user_who_called_sudo_does_not_lead_roots_work_folder() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    chmod(dir.path(), 0o755);
    let (own, precious) = (dir.path().join("mission/.lighthpc"), dir.path().join("precious"));
    std::fs::write(dir.path().join("a.txt"), "a").unwrap();
    std::fs::create_dir_all(&own).unwrap();
    std::fs::create_dir(&precious).unwrap();
    for path in [own.parent().unwrap(), &own] {
        chown(path, Some(OTHER), Some(OTHER)).unwrap();
    }
    let run = || {
        let arguments = ["run", "--local=mission", "a.txt", "--exec", r#"cp "$LIGHTHPC_INPUT" "$LIGHTHPC_OUTPUT""#];
        code_and_words(&lighthpc(dir.path(), &arguments, &[("SUDO_UID", "65534")]))
    };
    for name in ["work", "work-0"] {
        symlink(&precious, own.join(name)).unwrap();
        std::os::unix::fs::lchown(own.join(name), Some(OTHER), Some(OTHER)).unwrap();
    }
    let (code, words) = run();
    assert!(
        code == 2 && words.contains("is a link that user 65534 created") && words.contains("hint"),
        "{code} {words}"
    );
    assert_eq!(std::fs::read_dir(&precious).unwrap().count(), 0);
    std::fs::remove_file(own.join("work-0")).unwrap();
    assert_eq!(run().0, 0, "it has a folder of its own");
}
