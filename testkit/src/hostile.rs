//! Input that nobody of good will sends. No reader of it may panic, take more memory than a small multiple of it, or answer
//! with an error that is long.
//!
//! The targets of `fuzz/` and the tests `hostile` of each crate give their input to the same readers, by [`check`].

use std::{
    alloc::System,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use cap::Cap;

/// The bytes that a reader may allocate, all in all, for each byte of its input. What it gives back and allocates again is
/// counted again, so this bounds the work, too.
pub const PER_BYTE: usize = 64;

/// The bytes that a reader may allocate besides: for what it sets up once, and for as many empty tensors as a message may
/// hold.
pub const BESIDES: usize = 512 << 10;

/// The longest error, in bytes: gRPC's travel in a header, and those of workers in an entry of the queue.
pub const LONGEST_ERROR: usize = 2048;

/// The allocator of a program that calls [`check`].
pub type Allocator = Cap<System>;

/// Makes the allocator, which counts.
#[must_use]
pub const fn allocator() -> Allocator {
    Cap::new(System, usize::MAX)
}

/// Waits for the turn of a test that calls [`check`]: what another one of the same program allocates would be counted, too.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives `input` to a reader, as often as it has ways to read it: they are counted from 0, and measured one by one. The reader
/// returns the error that its sender is told.
///
/// # Panics
///
/// On an error longer than [`LONGEST_ERROR`], and where the reader allocated more than [`PER_BYTE`] and [`BESIDES`] say.
pub fn check(
    allocator: &Allocator,
    input: &[u8],
    ways: usize,
    read: impl Fn(usize, &[u8]) -> Result<(), String>,
) {
    for way in 0..ways {
        check_way(allocator, input, way, &read);
    }
}

fn check_way(
    allocator: &Allocator,
    input: &[u8],
    way: usize,
    read: impl Fn(usize, &[u8]) -> Result<(), String>,
) {
    let before = allocator.total_allocated();
    let outcome = read(way, input);
    let allocated = allocator.total_allocated() - before;
    let allowed = PER_BYTE * input.len() + BESIDES;
    assert!(
        allocated <= allowed,
        "way {way}: {} bytes were read into {allocated}, allowed are {allowed}",
        input.len()
    );
    if let Err(error) = outcome {
        assert!(
            error.len() <= LONGEST_ERROR,
            "way {way}: the error is {} bytes long, allowed are {LONGEST_ERROR}: {error:.200}",
            error.len()
        );
    }
}

/// The files of `fuzz/corpus/TARGET`, in the order of their names.
///
/// # Panics
///
/// Where there are none.
#[must_use]
pub fn corpus(target: &str) -> Vec<Vec<u8>> {
    let files = files(target).into_iter();
    files.map(|file| fs::read(file).unwrap()).collect()
}

fn files(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let folder = folder.join(target);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files
}

/// Gives every file of `fuzz/corpus/TARGET` to a reader, as [`check`] does. Each file's name is printed first: the last one is
/// that of a failure.
///
/// # Panics
///
/// As [`check`] does, and where there are no files.
pub fn read_corpus(
    allocator: &Allocator,
    target: &str,
    ways: usize,
    read: impl Fn(usize, &[u8]) -> Result<(), String>,
) {
    let _turn = turn();
    for file in files(target) {
        println!("{}", file.display());
        check(allocator, &fs::read(&file).unwrap(), ways, &read);
    }
}
