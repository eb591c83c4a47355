//! Files appear whole or not at all.

use super::*;

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.bin");
    write_atomic(&path, |w| w.write_all(b"old")).unwrap();
    let error = write_atomic(&path, |w| {
        w.write_all(b"half of the new")?;
        Err(std::io::Error::other("the disk is on fire"))
    });
    snapshot!(
        "atomic_write_fails",
        error
            .unwrap_err()
            .to_string()
            .replace(&dir.path().display().to_string(), "DIR")
    );
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        1,
        "no temporary file is left"
    );
    write_atomic(&path, |w| w.write_all(b"new")).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    let missing = dir.path().join("no/out.bin");
    assert!(write_atomic(&missing, |w| w.write_all(b"x")).is_err());
}

#[cfg(unix)]
#[test]
fn an_output_has_the_permissions_of_an_ordinary_file() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    write_atomic(&a, |w| w.write_all(b"x")).unwrap();
    fs::write(&b, "x").unwrap();
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode();
    assert_eq!(mode(&a), mode(&b));
}
