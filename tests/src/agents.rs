//! The programs that tests start as processes: the examples, first of all `agent`.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The program of the example `agent`, freshly built: one that lies there may be older than the library.
///
/// # Panics
///
/// If it does not build.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| example("agent"))
}

/// The program of an example, freshly built.
///
/// # Panics
///
/// If it does not build.
pub fn example(example: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("this test has a path");
    // target/<profile>/deps/agents-<hash>
    let profile = exe.parent().and_then(Path::parent).expect("a directory of the profile");
    let target = profile.parent().expect("a directory of the build");
    let name = match profile.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(name) => name,
        None => panic!("{}: what profile is this?", profile.display()),
    };
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "memberlist-protocol", "--example", example])
        .args(["--profile", name])
        .arg("--target-dir")
        .arg(target)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace"))
        .status()
        .expect("cargo runs");
    assert!(built.success(), "the example does not build");
    profile.join("examples").join(example)
}
