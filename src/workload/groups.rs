//! Private groups: a folder that is writable for such a group is writable for one user only.

/// Returns whether a group belongs to one user only, as most systems create one per user: it has the user's name, no
/// other member, and is no other user's first group. An unknown group is not private.
fn is_private_group(gid: u32, uid: u32, users: &str, groups: &str) -> bool {
    let field = |line: &str, n: usize| line.split(':').nth(n).unwrap_or_default().to_owned();
    let number = |line: &str, n: usize| field(line, n).parse::<u32>().ok();
    let user = users.lines().find(|line| number(line, 2) == Some(uid)).map(|line| field(line, 0));
    let Some(user) = user.filter(|name| !name.is_empty()) else { return false };
    let is_shared = users.lines().any(|line| number(line, 3) == Some(gid) && number(line, 2) != Some(uid));
    let mut entries = groups.lines().filter(|line| number(line, 2) == Some(gid)).peekable();
    entries.peek().is_some()
        && !is_shared
        && entries.all(|line| {
            let members = field(line, 3);
            field(line, 0) == user && (members.is_empty() || members == user)
        })
}

/// Returns whether a group belongs to one user only, as far as this machine knows users and groups.
pub(super) fn is_private(gid: u32, uid: u32) -> bool {
    is_private_group(gid, uid, &entries("/etc/passwd", "passwd", uid), &entries("/etc/group", "group", gid))
}

/// Returns a file of users or groups. If it does not contain the number, adds the answer of the machine's other sources
/// (such as LDAP).
fn entries(file: &str, database: &str, number: u32) -> String {
    let mut known = std::fs::read_to_string(file).unwrap_or_default();
    let is_it = |line: &str| line.split(':').nth(2).and_then(|field| field.parse().ok()) == Some(number);
    if !known.lines().any(is_it) {
        // This may query a server, with the machine's own time limit. Without `getent`, only the files are used.
        let asked = std::process::Command::new("/usr/bin/getent").args([database, &number.to_string()]).output();
        known.push('\n');
        known.push_str(&asked.map(|asked| String::from_utf8_lossy(&asked.stdout).into_owned()).unwrap_or_default());
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_of_ones_own_is_nobody_elses() {
        let users = "root:x:0:0::/:\nme:x:1000:1005::/:\nyou:x:1001:1001::/:\nher:x:1002:100::/:\nhim:x:1003:1004::/:\n\
                     it:x:1004:1004::/:\n";
        let groups =
            "root:x:0:\nme:x:1005:\nyou:x:1001:you\nusers:x:100:\nher:x:1002:her,me\nhim:x:1004:\nodd:x:1000:\n";
        let private = |gid, uid| is_private_group(gid, uid, users, groups);
        assert!(private(1005, 1000), "whatever its number");
        assert!(private(1001, 1001) && private(0, 0));
        for (gid, uid, why) in [
            (100, 1002, "all users'"),
            (1002, 1002, "with a member"),
            (1004, 1003, "another's first group"),
            (1000, 1000, "of the user's number and another name"),
            (1005, 1001, "another's"),
            (7, 1000, "unknown"),
            (1001, 7, "of an unknown user"),
        ] {
            assert!(!private(gid, uid), "{why}");
        }
    }
}
