//! Hostile and broken checkpoints (`fixtures/attacks`, written by `reference/torch/attacks.py`): each is refused with
//! the error that names what is wrong, quickly, without running anything and without taking much memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sdclr::checkpoint::{CheckpointError, read_object, read_training, read_weights};

/// What an attack that got through would create.
const MARKER: &str = "/tmp/sdclr-attack-marker";
/// The most that may be in use at once, over all tests of this file running side by side.
const MOST_BYTES: usize = 512 << 20;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting.
struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let in_use = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(in_use, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn fixture(name: &str) -> PathBuf {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    Path::new(&root).join("fixtures").join(name)
}

/// Reads a file that may be anything, within the limits of time and memory.
fn read(path: &Path) -> Result<usize, CheckpointError> {
    let start = Instant::now();
    let result = read_weights(path).map(|weights| weights.state.len());
    let (_, _) = (read_training(path), read_object(path));
    assert!(start.elapsed() < Duration::from_secs(10), "{} took {:?}", path.display(), start.elapsed());
    assert!(
        PEAK.load(Ordering::Relaxed) < MOST_BYTES,
        "{} took {} bytes",
        path.display(),
        PEAK.load(Ordering::Relaxed)
    );
    assert!(!Path::new(MARKER).exists(), "{} ran code", path.display());
    result
}

/// The file gives an error of this variant whose message names the file and says each of `words`.
fn check_refused(file: &str, variant: &str, words: &[&str]) {
    let error = read(&fixture("attacks").join(file)).unwrap_err();
    assert!(format!("{error:?}").starts_with(variant), "{file}: {error:?}");
    let message = error.to_string();
    assert!(message.len() < 800 && !message.contains('\n'), "{message}");
    for word in words.iter().chain([&file]) {
        assert!(message.contains(word), "'{word}' is not in: {message}");
    }
}

macro_rules! attacks {
    ($($test:ident: $file:literal, $variant:literal, [$($word:literal),* $(,)?];)*) => {
        $(#[test] fn $test() { check_refused($file, $variant, &[$($word),*]); })*
        #[test]
        fn every_file_has_a_test() {
            let folder = std::fs::read_dir(fixture("attacks")).unwrap();
            let mut files: Vec<_> = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            files.retain(|file| file != "README.md" && file != "archives");
            files.sort();
            let mut tested = vec![$($file),*];
            tested.sort_unstable();
            assert_eq!(files, tested);
        }
    };
}

attacks! {
    global_reduce: "global_reduce.pt", "ForbiddenGlobal", ["'os.system'", "byte 175"];
    stack_global: "stack_global.pt", "ForbiddenGlobal", ["'posix.system'"];
    stack_global_memo: "stack_global_memo.pt", "ForbiddenGlobal", ["'posix.system'"];
    stack_global_computed: "stack_global_computed.pt", "ForbiddenOpcode", ["STACK_GLOBAL"];
    inst: "inst.pt", "ForbiddenGlobal", ["'os.system'"];
    build: "build.pt", "ForbiddenGlobal", ["'__main__.Exploit'"];
    newobj_ex: "newobj_ex.pt", "ForbiddenGlobal", ["'subprocess.Popen'"];
    getattr: "getattr.pt", "ForbiddenGlobal", ["'builtins.getattr'"];
    load_from_bytes: "load_from_bytes.pt", "ForbiddenGlobal", ["'torch.storage._load_from_bytes'"];
    dotted_name: "dotted_name.pt", "ForbiddenGlobal", ["'torch.serialization.os.system'"];
    extension: "extension.pt", "ForbiddenOpcode", ["EXT1"];
    out_of_band: "out_of_band.pt", "ForbiddenOpcode", ["NEXT_BUFFER"];
    unknown_opcode: "unknown_opcode.pt", "ForbiddenOpcode", ["0xff"];
    deep_nesting: "deep_nesting.pt", "Bound", ["nesting", "found 65, allowed 64"];
    memo_bomb: "memo_bomb.pt", "Bound", ["objects", "shared ones counted"];
    persistent_id_text: "persistent_id_text.pt", "Malformed", ["persistent id"];
    persistent_id_short: "persistent_id_short.pt", "Malformed", ["persistent id that has 2 fields"];
    pickle_truncated: "pickle_truncated.pt", "Truncated", ["pickle ends within byte"];
    long_string: "long_string.pt", "Truncated", ["pickle ends within byte"];
    stack_underflow: "stack_underflow.pt", "Malformed", ["underflow"];

    cycle_list: "cycle_list.pt", "Malformed", ["'extra/0' holds itself"];
    cycle_dict: "cycle_dict.pt", "Malformed", ["'extra/x' holds itself"];
    cycle_tuple: "cycle_tuple.pt", "Malformed", ["'extra/0/0' holds itself"];
    items_of_list: "items_of_list.pt", "Malformed", ["puts items into a list"];
    items_of_tensor: "items_of_tensor.pt", "Malformed", ["puts items into a tensor"];
    items_odd: "items_odd.pt", "Malformed", ["a key without a value"];
    append_to_dict: "append_to_dict.pt", "Malformed", ["puts items into a dictionary"];
    append_to_tuple: "append_to_tuple.pt", "Malformed", ["puts items into a tuple"];
    add_to_list: "add_to_list.pt", "Malformed", ["puts items into a list"];
    build_list: "build_list.pt", "Malformed", ["state of a list (BUILD)"];
    build_dict: "build_dict.pt", "Malformed", ["state of a dictionary (BUILD)"];
    build_tensor: "build_tensor.pt", "Malformed", ["state of a tensor (BUILD)"];
    build_text: "build_text.pt", "Malformed", ["state of an OrderedDict"];
    newobj: "newobj.pt", "ForbiddenOpcode", ["NEWOBJ (0x81)", "byte 201"];
    text_opcode: "text_opcode.pt", "ForbiddenOpcode", ["INT (0x49)"];
    call_data: "call_data.pt", "Malformed", ["calls a list"];
    call_list: "call_list.pt", "Malformed", ["arguments that are no tuple"];
    call_storage: "call_storage.pt", "Malformed", ["arguments that are not its own"];
    call_text: "call_text.pt", "Malformed", ["arguments that are not its own"];
    call_itself: "call_itself.pt", "Malformed", ["_rebuild_from_type_v2"];
    class_as_value: "class_as_value.pt", "Malformed", ["'extra' is a class or function"];
    storage_as_value: "storage_as_value.pt", "NotRead", ["'extra' is a storage"];
    mark_missing: "mark_missing.pt", "Malformed", ["needs a mark"];
    memo_missing: "memo_missing.pt", "Malformed", ["object 99, which was not stored"];
    memo_texts: "memo_texts.pt", "Bound", ["bytes of text"];
    memo_tensors: "memo_tensors.pt", "Bound", ["number of tensors"];
    huge_tuple: "huge_tuple.pt", "Bound", ["objects", "found 500001"];
    call_copies: "call_copies.pt", "Bound", ["bytes that calls in its pickle copy"];
    call_encodes: "call_encodes.pt", "Bound", ["bytes that calls in its pickle copy"];
    key_twice: "key_twice.pt", "Malformed", ["'state_dict/w' stands twice"];
    key_true: "key_true.pt", "Malformed", ["stands twice"];
    key_list: "key_list.pt", "Malformed", ["'extra' is a list"];
    key_number: "key_number.pt", "Malformed", ["'1' has a name that is no text"];
    wide_integer: "wide_integer.pt", "NotRead", ["an integer of 255 bytes"];
    not_utf8: "not_utf8.pt", "Malformed", ["not UTF-8"];
    protocol: "protocol.pt", "Malformed", ["protocol 9"];
    numpy_object: "numpy_object.pt", "Malformed", ["calls Scalar"];
    numpy_short: "numpy_short.pt", "Malformed", ["calls Scalar"];
    persistent_id_module: "persistent_id_module.pt", "Malformed", ["is no storage's"];
    storage_twice: "storage_twice.pt", "Malformed", ["storage '0' in another way"];

    absurd_size: "absurd_size.pt", "Bound", ["bytes of tensor 'state_dict/w'", "found 4398046511104"];
    expanded: "expanded.pt", "Bound", ["bytes of all tensors", "found 8589934592"];
    shape_overflow: "shape_overflow.pt", "Bound", ["bytes of tensor 'state_dict/w'"];
    empty_overflow: "empty_overflow.pt", "Bound", ["bytes of tensor 'state_dict/w'"];
    stride_overflow: "stride_overflow.pt", "Malformed", ["reaches over 13835058055282163712 elements"];
    negative_stride: "negative_stride.pt", "Malformed", ["'state_dict/w' has the stride -1"];
    negative_offset: "negative_offset.pt", "Malformed", ["from element -1"];
    negative_shape: "negative_shape.pt", "Malformed", ["has the extent -4"];
    negative_count: "negative_count.pt", "Malformed", ["storage '0' has -4 elements"];
    offset_beyond: "offset_beyond.pt", "Malformed", ["4 elements from element 1000", "storage '0' has 4"];
    rank: "rank.pt", "Bound", ["dimensions of tensor 'state_dict/w'", "found 1000, allowed 16"];
    rank_mismatch: "rank_mismatch.pt", "Malformed", ["has 2 extents and 1 strides"];
    storage_missing: "storage_missing.pt", "Malformed", ["'data/7'", "not found in the archive"];
    storage_short: "storage_short.pt", "Truncated", ["storage '0' has 8 bytes, expected 16"];
    storage_path: "storage_path.pt", "Malformed", ["'data/../../../etc/passwd'", "not found in the archive"];
    joined_names: "joined_names.pt", "NoTensors", ["deeper down, under 'a'"];
    no_tensors: "no_tensors.pt", "NoTensors", ["its keys are epoch", "'state_dict'"];
    root_tensor: "root_tensor.pt", "NoTensors", ["root is no dictionary"];
    other_key: "other_key.pt", "NoTensors", ["under 'model'"];

    zip_bomb: "zip_bomb.pt", "Bound", ["unpacked", "found 16777"];
    pickle_bomb: "pickle_bomb.pt", "Bound", ["unpacked", "found 16777"];
    duplicate_entries: "duplicate_entries.pt", "Malformed", ["same name"];
    two_pickles: "two_pickles.pt", "Malformed", ["2 entries data.pkl"];
    path_traversal: "path_traversal.pt", "Malformed", ["'../../evil' leads out"];
    absolute_path: "absolute_path.pt", "Malformed", ["'/etc/evil' leads out"];
    no_pickle: "no_pickle.pt", "Malformed", ["0 entries data.pkl"];
    byte_order: "byte_order.pt", "Malformed", ["byteorder says 'middle'"];
    storage_long: "storage_long.pt", "Truncated", ["storage '0' has 20 bytes, expected 16"];
    checksum: "checksum.pt", "Malformed", ["checksum", "storage '0'"];
    entry_size: "entry_size.pt", "Bound", ["unpacked"];
    truncated: "truncated.pt", "Truncated", ["zip directory"];

    empty: "empty.pt", "NotACheckpoint", ["is empty"];
    page: "page.pt", "NotACheckpoint", ["<!DOCTYPE html>"];
    noise: "noise.pt", "NotACheckpoint", ["80 81 82"];
    bare_pickle: "bare_pickle.pt", "NotACheckpoint", ["80 02 63"];
    legacy: "legacy.pt", "ForbiddenGlobal", ["'os.system'"];
    legacy_tar: "legacy_tar.pt", "NotACheckpoint", ["80 02 8a"];
    legacy_short: "legacy_short.pt", "Bound", ["bytes of all tensors", "found 4194304"];
    legacy_version: "legacy_version.pt", "Malformed", ["version is not 1001"];
    legacy_count: "legacy_count.pt", "Malformed", ["says that it has 2305843009213693952 elements, expected 4"];
    legacy_missing: "legacy_missing.pt", "Malformed", ["storage '0', which is not found"];
    legacy_unknown: "legacy_unknown.pt", "Malformed", ["names one that no tensor lies in"];
    legacy_twice: "legacy_twice.pt", "Malformed", ["storage '0' stands twice"];
    header_length: "header_length.safetensors", "Bound", ["header", "found 9223372036854775808"];
    header_beyond: "header_beyond.safetensors", "Truncated", ["header alone has 4096 bytes"];
    overlap: "overlap.safetensors", "Malformed", ["invalid offset"];
    out_of_range: "out_of_range.safetensors", "Truncated", ["there are"];
    hole: "hole.safetensors", "Malformed", ["invalid offset"];
    negative: "negative.safetensors", "Malformed", ["`-16`"];
    reversed: "reversed.safetensors", "Malformed", ["invalid offset"];
    shape_lies: "shape_lies.safetensors", "Malformed", ["invalid shape"];
    overflow: "overflow.safetensors", "Malformed", ["overflow"];
    empty_huge: "empty_huge.safetensors", "Bound", ["bytes of tensor 'w'"];
    rank_safetensors: "rank.safetensors", "Bound", ["dimensions of tensor 'w'"];
    dtype: "dtype.safetensors", "Kind", ["'w' has the type U64"];
    trailing: "trailing.safetensors", "Truncated", ["there are"];
    not_json: "not_json.safetensors", "Malformed", ["not safetensors' JSON"];
    deep_json: "deep_json.safetensors", "Malformed", ["recursion limit"];
    no_tensors_safetensors: "no_tensors.safetensors", "NoTensors", ["header is empty"];
    training_version: "training_version.safetensors", "FormatVersion", ["format 999", "writes 2"];
    training_json: "training_json.safetensors", "Malformed", ["missing field `format`"];
}

#[test]
fn missing_files_and_folders_are_named() {
    let error = read(&fixture("attacks/nothing.pt")).unwrap_err();
    assert!(matches!(error, CheckpointError::Unreadable { .. }) && error.to_string().contains("check the path"));
    let error = read(&fixture("attacks")).unwrap_err();
    assert!(matches!(error, CheckpointError::NotACheckpoint { .. }) && error.to_string().contains("folder"));
    assert!(matches!(read(Path::new("/dev/zero")).unwrap_err(), CheckpointError::NotACheckpoint { .. }));
}

/// A stored pickle of many small objects: no ratio gives it away, and each byte would become a hundred.
#[test]
fn opcodes_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flood.pt");
    let mut pickle = b"\x80\x02(".to_vec();
    pickle.resize(15 << 20, b']');
    pickle.extend(b"l.");
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    archive.start_file("archive/data.pkl", stored).unwrap();
    archive.write_all(&pickle).unwrap();
    sdclr::fs::write(&path, archive.finish().unwrap().get_ref()).unwrap();
    let error = read(&path).unwrap_err();
    assert!(matches!(error, CheckpointError::Bound { .. }) && error.to_string().contains("opcodes"), "{error}");
}

/// Every cut of a good file is refused: no tensor comes out of half a checkpoint.
#[test]
fn every_truncation_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["mask_3.pt", "pretrain_legacy.pt", "pretrain.safetensors"] {
        let whole = sdclr::fs::read(&fixture("golden/checkpoint").join(name)).unwrap();
        let path = folder.path().join(name);
        for length in (0..whole.len()).step_by(13).chain([whole.len() - 1]) {
            sdclr::fs::write(&path, &whole[..length]).unwrap();
            assert!(read(&path).is_err(), "{name} cut to {length} of {} bytes", whole.len());
        }
    }
}

/// What the fuzzer found worth keeping (`fuzz/`): errors or tensors, as above.
#[test]
fn the_fuzzers_corpus_is_harmless() {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    let folder = std::fs::read_dir(Path::new(&root).join("fuzz/corpus/pt")).unwrap();
    let results: Vec<_> = folder.map(|entry| read(&entry.unwrap().path())).collect();
    let refused = results.iter().filter(|result| result.is_err()).count();
    assert!(results.len() >= 32 && refused >= results.len() / 2, "{refused} of {} refused", results.len());
}

/// A few thousand damaged copies of good files: errors or tensors, never a panic, never much memory.
#[test]
fn damaged_bytes_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = 0x5dc1_2021_u64;
    let mut below = move |limit: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % limit as u64) as usize
    };
    for name in
        ["probe.pt", "views.pt", "dtypes.pt", "pretrain_legacy.pt", "pretrain_protocol4.pt", "views.safetensors"]
    {
        let whole = sdclr::fs::read(&fixture("golden/checkpoint").join(name)).unwrap();
        let path = folder.path().join(name);
        for _ in 0..600 {
            let mut damaged = whole.clone();
            for _ in 0..1 + below(4) {
                let position = below(damaged.len());
                match below(4) {
                    0 => damaged[position] ^= 1 << below(8),
                    1 => damaged[position] = below(256) as u8,
                    2 => drop(damaged.drain(position..(position + 1 + below(8)).min(damaged.len()))),
                    _ => damaged.insert(position, below(256) as u8),
                }
            }
            // Written in place: thousands of fsyncs would test the disk.
            let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).open(&path).unwrap();
            file.write_all(&damaged).unwrap();
            let _ = read(&path);
        }
    }
}
