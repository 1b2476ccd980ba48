//! Exports `getrandom`, so that libraries that look it up at run time find the simulator's.

fn main() {
    println!("cargo::rustc-link-arg-bins=-rdynamic");
    println!("cargo::rerun-if-changed=build.rs");
}
