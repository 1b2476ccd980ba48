//! Names that somebody could choose to do harm, for the tests of every boundary: here, and in `src` (`hostile_names`).

/// Names that somebody could choose to do harm, each for another reason.
#[rustfmt::skip]
const NAMES: &[&str] = &[
    "", " ", ".", "..", "/", "//", "~", "#", "%", "?", "-", "--", "-rf", "--help", "a/../../b", "../../../etc/passwd",
    "a//b", "a/", "/a", ".hidden", "%2e%2e%2f", "%00", "%", "a%b", "a?b&c=d#e", "M#tally#0", "M#tally#0/e0", "M#0",
    "~sweep", "~nodes", "~key:00000000000000000000000000000000", "~mission:00000000000000000000000000000000",
    "~sweep/x", "aws:a", "AWS:a", "'", "\"", "`id`", "$(reboot)", "${HOME}", "; rm -rf ~", "a b", "a\tb", "| tee x",
    "&& x", "> /etc/passwd", "*", "?", "[a]", "{input}", "=cmd|' /C calc'!A0", "+1", "@SUM(1)", "-1+1", "\t=1",
    "<script>alert(1)</script>", "&amp;", "</tasks>", "a\nb", "a\r\nb", "a\rb",
    "x\n2026-01-01T00:00:00Z ERROR forged", "\u{1b}[2J", "\u{1b}]0;title\u{7}", "a\u{8}\u{8}b", "\u{7f}", "\u{9b}31m",
    "\u{85}", "\u{a0}a", "a\u{a0}", "gpj.\u{202e}exe", "\u{2066}a\u{2069}", "a\u{200b}b", "a\u{200d}b", "a\u{feff}",
    "a\u{2028}b", "a\u{3164}b", "a\u{fe0f}b", "\u{e0041}", "a\u{fff9}b", "\u{fffd}", "\u{fffe}", "\u{10ffff}",
    "e\u{301}", "é", "ﬁ", "İ", "文件", "🧬", "0", "-0", "1e999", "99999999999999999999999999", "NaN", "null", "true",
    "NULL", "\\", "\\0", "\\n", "C:\\x", "CON", "rslt_a", "logs/a.1.log", "manifests/M.json", "_lighthpc_index.json",
    "d", "d/_lighthpc_index.json",
];

/// [`NAMES`], every byte as a character, and names of every length that something has as its limit.
pub(crate) fn names() -> Vec<String> {
    let mut names: Vec<String> = NAMES.iter().copied().map(str::to_owned).collect();
    names.extend((0..=0xff_u8).map(|byte| format!("b{}e", char::from(byte))));
    for len in [200, 201, 255, 256, 257, 1_000, 1_018, 1_019, 1_020, 1_024, 1_025, 1_900, 1_901, 2_049] {
        names.push("x".repeat(len));
        names.push("文".repeat(len / 3));
        names.push(format!("{}~{}", "y".repeat(len.saturating_sub(17)), "0".repeat(16)));
        names.push(format!("{}~{}", "y".repeat(len.saturating_sub(65)), "f".repeat(64)));
    }
    names.sort();
    names.dedup();
    names
}
