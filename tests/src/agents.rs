//! The program that tests start as a process: the example `agent`.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The program of the example, freshly built: one that lies there may be older than the library.
///
/// # Panics
///
/// If it does not build.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(build)
}

fn build() -> PathBuf {
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
        .args(["build", "--quiet", "--package", "memberlist-protocol", "--example", "agent"])
        .args(["--profile", name])
        .arg("--target-dir")
        .arg(target)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace"))
        .status()
        .expect("cargo runs");
    assert!(built.success(), "the example does not build");
    profile.join("examples/agent")
}
