//! Archives: well-formed ones come out byte for byte; hostile and broken ones (`fixtures/attacks/archives`, written by
//! `reference/archives/attacks.py`) are refused with the error that names what is wrong, and leave nothing behind.

mod skip;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use sdclr::artifact::hash::{Algorithm, Hasher, hash_file};
use sdclr::artifact::unpack::{UnpackError, Unpacked, names_in_zip};
use sdclr::fs;
use skip::skip;
use tar::{EntryType, Header};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

/// A path of a file or folder, and a file's content.
type Tree = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// In memory where that can be had: thousands of fsyncs would test the disk.
fn temporary() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Unpacks by way of a folder beside `into`.
fn unpack(archive: &Path, into: &Path) -> Result<Unpacked, UnpackError> {
    sdclr::artifact::unpack::unpack(archive, into, &into.with_added_extension("scratch"))
}

/// Everything under `folder`.
fn tree(folder: &Path) -> Tree {
    fn walk(root: &Path, folder: &Path, tree: &mut Tree) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            let content = metadata.is_file().then(|| std::fs::read(&path).unwrap());
            tree.insert(path.strip_prefix(root).unwrap().to_path_buf(), content);
            if metadata.is_dir() {
                walk(root, &path, tree);
            }
        }
    }
    let mut found = Tree::new();
    walk(folder, folder, &mut found);
    found
}

/// A folder in which `into` lies, with a file and a folder in it, two levels down so that `..` has somewhere to lead.
struct Place {
    root: TempDir,
    into: PathBuf,
}

fn place() -> Place {
    let root = temporary();
    let into = root.path().join("a/into");
    std::fs::create_dir_all(into.join("a")).unwrap();
    put(&into.join("kept"), b"kept");
    put(&into.join("a/old"), b"old");
    Place { root, into }
}

fn put(path: &Path, bytes: &[u8]) {
    let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).open(path).unwrap();
    file.write_all(bytes).unwrap();
}

/// Unpacks and checks that an error leaves everything as it was.
fn try_unpack(archive: &Path) -> Result<(Unpacked, Place), UnpackError> {
    let place = place();
    let before = tree(place.root.path());
    let result = unpack(archive, &place.into);
    if result.is_err() {
        assert_eq!(tree(place.root.path()), before, "{} left something behind", archive.display());
    }
    assert!(!Path::new("/tmp/sdclr-evil").exists(), "{} wrote outside its folder", archive.display());
    result.map(|unpacked| (unpacked, place))
}

fn fixture(file: &str) -> PathBuf {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    Path::new(&root).join("fixtures/attacks/archives").join(file)
}

/// The file gives an error of this variant whose message names the file and says each of `words`.
fn check_refused(file: &str, variant: &str, words: &[&str]) {
    let error = match try_unpack(&fixture(file)) {
        Err(error) => error,
        Ok((unpacked, _)) => panic!("{file} was unpacked: {unpacked:?}"),
    };
    assert!(format!("{error:?}").starts_with(variant), "{file}: {error:?}");
    let message = error.to_string();
    assert!(message.len() < 800 && !message.contains(['\n', '\x1b']), "{message}");
    for word in words.iter().chain([&file]) {
        assert!(message.contains(word), "'{word}' is not in: {message}");
    }
}

macro_rules! attacks {
    ($($test:ident: $file:literal, $variant:literal, [$($word:literal),* $(,)?];)*) => {
        $(#[test] fn $test() { check_refused($file, $variant, &[$($word),*]); })*
        #[test]
        fn every_file_has_a_test() {
            let folder = std::fs::read_dir(fixture("")).unwrap();
            let mut files: Vec<_> = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            files.retain(|file| file != "README.md");
            files.sort();
            let mut tested = vec![$($file),*];
            tested.sort_unstable();
            assert_eq!(files, tested);
        }
    };
}

attacks! {
    tar_absolute: "absolute.tar.gz", "Name", ["'/tmp/sdclr-evil' has an absolute path"];
    tar_parent: "parent.tar.gz", "Name", ["'../evil' leads out"];
    tar_parent_inside: "parent_inside.tar.gz", "Name", ["'a/../../evil' leads out"];
    tar_parent_last: "parent_last.tar.gz", "Name", ["'a/..' leads out"];
    tar_dot: "dot.tar.gz", "Name", ["'./a' has an empty or a '.' part"];
    tar_empty_part: "empty_part.tar.gz", "Name", ["'a//b' has an empty"];
    tar_empty_name: "empty_name.tar.gz", "Name", ["'' has an empty"];
    tar_slash: "slash.tar.gz", "Name", ["'a/' has an empty"];
    tar_backslash: "backslash.tar.gz", "Name", ["backslash"];
    tar_control: "control.tar.gz", "Name", ["'a\\nb' has a control character"];
    tar_escape: "escape.tar.gz", "Name", ["control character"];
    tar_nul: "nul.tar.gz", "Name", ["'a\\0b' has a control character"];
    tar_not_utf8: "not_utf8.tar.gz", "Name", ["not UTF-8"];
    tar_long_part: "long_part.tar.gz", "Bound", ["found 300, allowed 255"];
    tar_deep: "deep.tar.gz", "Bound", ["deep", "found 21, allowed 16"];
    tar_long_name: "long_name.tar.gz", "Bound", ["long name", "found 2002, allowed 1025"];
    tar_long_name_size: "long_name_size.tar.gz", "Bound", ["long name", "found 4294967296"];
    tar_two_long_names: "two_long_names.tar.gz", "Malformed", ["two long names"];
    tar_long_name_alone: "long_name_alone.tar.gz", "Malformed", ["before no entry"];
    tar_duplicate: "duplicate.tar.gz", "Duplicate", ["'a' has the name of an entry before it"];
    tar_duplicate_case: "duplicate_case.tar.gz", "Duplicate", ["differs from 'a/File' only in upper and lower case"];
    tar_duplicate_folder_case: "duplicate_folder_case.tar.gz", "Duplicate", ["differs from 'A' only"];
    tar_duplicate_slash: "duplicate_slash.tar.gz", "Duplicate", ["has the name of an entry before it"];
    tar_file_as_folder: "file_as_folder.tar.gz", "Duplicate", ["lies in 'a', which is a file"];
    tar_folder_as_file: "folder_as_file.tar.gz", "Duplicate", ["has the name of an entry before it"];

    tar_symbolic_link: "symbolic_link.tar.gz", "Kind", ["'a' is a symbolic link"];
    tar_hard_link: "hard_link.tar.gz", "Kind", ["a hard link"];
    tar_character_device: "character_device.tar.gz", "Kind", ["a device"];
    tar_block_device: "block_device.tar.gz", "Kind", ["a device"];
    tar_fifo: "fifo.tar.gz", "Kind", ["a FIFO"];
    tar_contiguous: "contiguous.tar.gz", "Kind", ["of the type '7'"];
    tar_unknown: "unknown.tar.gz", "Kind", ["of the type 'Z'"];
    tar_link_then_file: "link_then_file.tar.gz", "Kind", ["a symbolic link"];
    tar_long_link: "long_link.tar.gz", "Kind", ["a link with a long target"];
    tar_sparse: "sparse.tar.gz", "Kind", ["a sparse file"];
    tar_folder_with_content: "folder_with_content.tar.gz", "Kind", ["a folder with content"];
    tar_pax_sparse: "pax_sparse.tar.gz", "Malformed", ["PAX header sets 'GNU.sparse.major'"];
    tar_pax_path: "pax_path.tar.gz", "Malformed", ["PAX header sets 'path'"];
    tar_pax_size: "pax_size.tar.gz", "Malformed", ["PAX header sets 'size'"];
    tar_pax_global: "pax_global.tar.gz", "Malformed", ["PAX header sets 'path'"];
    tar_pax_malformed: "pax_malformed.tar.gz", "Malformed", ["PAX header is malformed"];
    tar_pax_huge: "pax_huge.tar.gz", "Bound", ["PAX header", "found 1073741824"];

    tar_size_beyond: "size_beyond.tar.gz", "Damaged", ["'a' ends 998464 bytes early"];
    tar_size_huge: "size_huge.tar.gz", "Bound", ["bytes of its entry 'a'", "found 4611686018427387904"];
    tar_size_text: "size_text.tar.gz", "Malformed", ["size is no number"];
    tar_header_checksum: "header_checksum.tar.gz", "Damaged", ["header's checksum is wrong"];
    tar_no_end: "no_end.tar.gz", "Damaged", ["ends too early"];
    tar_half_block: "half_block.tar.gz", "Damaged", ["ends too early"];
    tar_data_behind_zeros: "data_behind_zeros.tar.gz", "Malformed", ["behind the end of its tar archive"];
    tar_only_folder: "only_folder.tar.gz", "Malformed", ["no file"];
    tar_bomb: "bomb.tar.gz", "Bound", ["when unpacked, for a file of its size", "found 4194304"];
    tar_zeros_behind: "zeros_behind.tar.gz", "Bound", ["zeros behind the last entry"];
    gzip_checksum: "gzip_checksum.tar.gz", "Damaged", ["checksum"];
    gzip_length: "gzip_length.tar.gz", "Damaged", ["checksum"];
    gzip_cut: "gzip_cut.tar.gz", "Damaged", ["early"];
    gzip_no_trailer: "gzip_no_trailer.tar.gz", "Damaged", ["ends too early"];
    gzip_second_member: "second_member.tar.gz", "Malformed", ["behind the end of its gzip stream"];
    gzip_trailing: "trailing.tar.gz", "Malformed", ["behind the end of its gzip stream"];
    gzip_trailing_zeros: "trailing_zeros.tar.gz", "Malformed", ["behind the end of its gzip stream"];
    gzip_block_type: "block_type.tar.gz", "Damaged", ["corrupt"];
    not_tar: "not_tar.tar.gz", "Damaged", ["holds no tar archive"];
    nothing: "nothing.tar.gz", "Damaged", ["ends too early"];
    plain: "plain.tar.gz", "NotAnArchive", ["begins with the text 'good"];
    empty: "empty.tar.gz", "NotAnArchive", ["is empty"];
    page: "page.tar.gz", "NotAnArchive", ["<!DOCTYPE html>"];
    xz: "xz.tar.gz", "NotAnArchive", ["fd 37 7a"];

    zip_absolute: "absolute.zip", "Name", ["absolute path"];
    zip_parent: "parent.zip", "Name", ["'../evil' leads out"];
    zip_dot: "dot.zip", "Name", ["'.' part"];
    zip_empty_part: "empty_part.zip", "Name", ["an empty or"];
    zip_empty_name: "empty_name.zip", "Name", ["an empty or"];
    zip_backslash: "backslash.zip", "Name", ["backslash"];
    zip_control: "control.zip", "Name", ["control character"];
    zip_nul: "nul.zip", "Name", ["control character"];
    zip_not_utf8: "not_utf8.zip", "Name", ["not UTF-8"];
    zip_second_name: "second_name.zip", "Malformed", ["UnicodePath"];
    zip_long_part: "long_part.zip", "Bound", ["found 300, allowed 255"];
    zip_long_name: "long_name.zip", "Bound", ["found 2001, allowed 1024"];
    zip_deep: "deep.zip", "Bound", ["found 21, allowed 16"];
    zip_duplicate: "duplicate.zip", "Malformed", ["same name"];
    zip_duplicate_case: "duplicate_case.zip", "Duplicate", ["upper and lower case"];
    zip_duplicate_slash: "duplicate_slash.zip", "Duplicate", ["entry before it"];
    zip_file_as_folder: "file_as_folder.zip", "Duplicate", ["which is a file"];

    zip_symbolic_link: "symbolic_link.zip", "Kind", ["a symbolic link"];
    zip_fifo: "fifo.zip", "Kind", ["a FIFO"];
    zip_device: "device.zip", "Kind", ["a device"];
    zip_folder_mode: "folder_mode.zip", "Kind", ["a file to some programs and a folder to others"];
    zip_folder_as_file: "folder_as_file.zip", "Kind", ["a file to some programs and a folder to others"];
    zip_folder_with_content: "folder_with_content.zip", "Kind", ["a folder with content"];
    zip_encrypted: "encrypted.zip", "Kind", ["encrypted"];
    zip_method: "method.zip", "Kind", ["another method than deflate"];

    zip_local_name: "local_name.zip", "Malformed", ["inconsisten"];
    zip_local_size: "local_size.zip", "Malformed", ["inconsisten"];
    zip_local_packed: "local_packed.zip", "Malformed", ["inconsisten"];
    zip_local_crc: "local_crc.zip", "Malformed", ["inconsisten"];
    zip_local_method: "local_method.zip", "Malformed", ["inconsisten"];
    zip_local_flags: "local_flags.zip", "Malformed", ["inconsisten"];
    zip_unlisted: "unlisted.zip", "Malformed", ["missing from central directory"];
    zip_overlap: "overlap.zip", "Malformed", ["inconsisten"];
    zip_overlap_quoted: "overlap_quoted.zip", "Malformed", ["overlapping entries"];
    zip_start_beyond: "start_beyond.zip", "Malformed", ["Unexpected end"];
    zip_in_directory: "in_directory.zip", "Malformed", ["overlapping entries"];

    zip_crc: "crc.zip", "Damaged", ["'a' has the checksum 363a3020, not 00000001"];
    zip_packed_crc: "packed_crc.zip", "Damaged", ["not 00000001"];
    zip_size_more: "size_more.zip", "Damaged", ["'a' ends 100 bytes early"];
    zip_size_less: "size_less.zip", "Malformed", ["sizes of its entry 'a' are wrong"];
    zip_stored_sizes: "stored_sizes.zip", "Kind", ["stored with two sizes"];
    zip_packed_more: "packed_more.zip", "Malformed", ["sizes of its entry 'a' are wrong"];
    zip_packed_less: "packed_less.zip", "Damaged", ["early"];
    zip_block_type: "block_type.zip", "Damaged", ["corrupt deflate stream"];
    zip_bomb: "bomb.zip", "Bound", ["when unpacked, for a file of its size"];
    zip_size_huge: "size_huge.zip", "Bound", ["when unpacked, for a file of its size"];

    zip_cut: "cut.zip", "Damaged", ["no zip directory"];
    zip_no_end: "no_end.zip", "Damaged", ["no zip directory"];
    zip_prepended: "prepended.zip", "Malformed", ["19 bytes stand before its first entry"];
    zip_shifted: "shifted.zip", "Malformed", ["two ways"];
    zip_trailing: "trailing.zip", "Damaged", ["no zip directory"];
    zip_count_more: "count_more.zip", "Malformed", ["zip"];
    zip_count_less: "count_less.zip", "Malformed", ["missing"];
    zip_count_huge: "count_huge.zip", "Bound", ["number of entries", "found 1099511627776"];
    zip_zip64_missing: "zip64_missing.zip", "Damaged", ["zip64"];
    zip_comment_end: "comment_end.zip", "Malformed", ["two ways"];
    zip_no_entries: "no_entries.zip", "Malformed", ["no file"];
    zip_only_folder: "only_folder.zip", "Malformed", ["no file"];
    zip_page: "page.zip", "NotAnArchive", ["<!DOCTYPE html>"];
}

/// What an archive is made of: raw names, contents, kinds of entries as tar knows them.
#[derive(Debug, Clone)]
struct Packed {
    name: Vec<u8>,
    content: Vec<u8>,
    kind: u8,
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A tar archive with names as they are; names beyond the header's field go through a long name of GNU's.
fn tar_gz(entries: &[Packed]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for Packed { name, content, kind } in entries {
        let mut header = Header::new_gnu();
        if name.len() > 100 {
            let mut long = header.clone();
            long.set_entry_type(EntryType::GNULongName);
            long.set_size(name.len() as u64);
            long.set_cksum();
            builder.append(&long, &name[..]).unwrap();
        }
        let held = &mut header.as_old_mut().name;
        let length = name.len().min(held.len());
        held[..length].copy_from_slice(&name[..length]);
        header.set_link_name_literal("../../evil").unwrap();
        header.set_entry_type(EntryType::new(*kind));
        header.set_size(content.len() as u64);
        header.set_mode(0o6777);
        header.set_cksum();
        builder.append(&header, &content[..]).unwrap();
    }
    gzip(&builder.into_inner().unwrap())
}

/// A zip archive; names must be text.
fn zipped(entries: &[Packed]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (i, Packed { name, content, kind }) in entries.iter().enumerate() {
        let method = [zip::CompressionMethod::Deflated, zip::CompressionMethod::Stored][i % 2];
        let options = SimpleFileOptions::default().compression_method(method).unix_permissions(0o6777);
        let name = String::from_utf8_lossy(name);
        let result = match kind {
            b'5' => writer.add_directory(name, options),
            b'2' => writer.add_symlink(name, "../../evil", options),
            _ => writer.start_file(name, options),
        };
        // Not everything can be written, a name twice for instance.
        if result.is_ok() && *kind == b'0' {
            writer.write_all(content).unwrap();
        }
    }
    writer.finish().unwrap().into_inner()
}

fn write_archive(folder: &TempDir, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join("archive");
    put(&path, bytes);
    path
}

fn unpack_bytes(bytes: &[u8]) -> Result<(Unpacked, Place), UnpackError> {
    let folder = temporary();
    try_unpack(&write_archive(&folder, bytes))
}

fn file(name: &str, content: &[u8]) -> Packed {
    Packed { name: name.into(), content: content.into(), kind: b'0' }
}

fn folder(name: &str) -> Packed {
    Packed { name: name.into(), content: Vec::new(), kind: b'5' }
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

/// Top-level entries replace what has their name, other things stay, and modes are not the archive's.
#[test]
fn entries_replace_their_like() {
    let entries = [folder("a/"), file("a/new", b"new"), file("b", b"b")];
    for archive in [tar_gz(&entries), zipped(&entries)] {
        let (unpacked, place) = unpack_bytes(&archive).unwrap();
        assert_eq!(unpacked, Unpacked { files: vec!["a/new".into(), "b".into()], bytes: 4 });
        let expected = [
            ("a", None),
            ("a/into", None),
            ("a/into/a", None),
            ("a/into/a/new", Some("new")),
            ("a/into/b", Some("b")),
            ("a/into/kept", Some("kept")),
        ];
        let expected = expected.map(|(path, content)| (path.into(), content.map(|text| text.as_bytes().to_vec())));
        assert_eq!(tree(place.root.path()), Tree::from(expected));
        let umask = 0o777
            & !mode(&{
                let probe = place.root.path().join("probe");
                std::fs::create_dir(&probe).unwrap();
                probe
            });
        assert_eq!(mode(&place.into.join("a/new")), 0o644 & !umask);
        assert_eq!(mode(&place.into.join("a")), 0o755 & !umask);
    }
}

/// A folder that is not there yet appears, with its parents.
#[test]
fn a_new_folder_appears() {
    let root = temporary();
    let archive = write_archive(&root, &tar_gz(&[file("x/y", b"y")]));
    let into = root.path().join("new/deep/into");
    unpack(&archive, &into).unwrap();
    assert_eq!(tree(&root.path().join("new/deep")).len(), 3);
    assert_eq!(std::fs::read(into.join("x/y")).unwrap(), b"y");
}

/// Two archives may be the first in a folder at the same time.
#[test]
fn two_make_a_new_folder_at_once() {
    let root = temporary();
    let archives = ["x", "y"].map(|name| {
        let path = root.path().join(format!("{name}.tar.gz"));
        put(&path, &tar_gz(&[file(name, b"")]));
        path
    });
    for round in 0..200 {
        let into = root.path().join(format!("into{round}"));
        std::thread::scope(|scope| {
            for (number, archive) in archives.iter().enumerate() {
                let (into, scratch) = (&into, root.path().join(format!("scratch{number}")));
                scope.spawn(move || sdclr::artifact::unpack::unpack(archive, into, &scratch).unwrap());
            }
        });
        assert_eq!(tree(&into).into_keys().collect::<Vec<_>>(), ["x", "y"].map(PathBuf::from));
    }
}

/// What a killed unpacking left is gone after the next.
#[test]
fn scratch_is_emptied_first() {
    let root = temporary();
    let archive = write_archive(&root, &tar_gz(&[file("x", b"x")]));
    let into = root.path().join("into");
    std::fs::create_dir_all(root.path().join("into.scratch/new/half")).unwrap();
    unpack(&archive, &into).unwrap();
    assert_eq!(tree(&into).into_keys().collect::<Vec<_>>(), [PathBuf::from("x")]);
    assert!(!root.path().join("into.scratch").exists());
}

/// Where the archive's place is taken by something that cannot be replaced, everything is as it was.
#[test]
fn a_file_in_the_way_is_named() {
    let root = temporary();
    let archive = write_archive(&root, &tar_gz(&[file("x", b"x")]));
    let before = tree(root.path());
    let error = unpack(&archive, &archive).unwrap_err();
    assert!(matches!(error, UnpackError::File(_)), "{error}");
    assert_eq!(tree(root.path()), before);
    let error = unpack(&root.path().join("missing"), root.path()).unwrap_err();
    assert!(matches!(error, UnpackError::Unreadable { .. }), "{error}");
    let error = unpack(root.path(), root.path()).unwrap_err();
    assert!(matches!(error, UnpackError::NotAnArchive { .. }), "{error}");
}

/// Bounds whose archives would be too large to commit.
#[test]
fn entries_and_headers_are_counted() {
    let entries: Vec<_> = (0..20_001).map(|i| file(&i.to_string(), b"")).collect();
    for archive in [tar_gz(&entries), zipped(&entries)] {
        let error = unpack_bytes(&archive).err().unwrap();
        assert!(error.to_string().contains("number of entries: found 20001, allowed 20000"), "{error}");
    }
    let comment = Packed { name: b"pax".to_vec(), content: b"12 comment=\n".to_vec(), kind: b'g' };
    let error = unpack_bytes(&tar_gz(&vec![comment; 80_001])).err().unwrap();
    assert!(error.to_string().contains("number of headers: found 80001"), "{error}");
}

/// A hostile directory costs no more where only its names are asked for.
#[test]
fn names_in_a_zip_are_read_under_the_same_bounds() {
    let folder = temporary();
    let entries: Vec<_> = (0..20_001).map(|i| file(&i.to_string(), b"")).collect();
    let names = |count: usize| names_in_zip(&write_archive(&folder, &zipped(&entries[..count])));
    assert_eq!(names(20_000).unwrap().len(), 20_000);
    let error = names(20_001).unwrap_err();
    assert!(error.to_string().contains("number of entries: found 20001, allowed 20000"), "{error}");
    for (name, variant) in [("count_huge.zip", "Bound"), ("cut.zip", "Damaged"), ("count_more.zip", "Malformed")] {
        let error = names_in_zip(&fixture(name)).unwrap_err();
        assert!(format!("{error:?}").starts_with(variant), "{name}: {error:?}");
    }
    assert_eq!(names_in_zip(&write_archive(&folder, &tar_gz(&entries[..1]))).unwrap(), [""; 0]);
}

/// Archives as common programs write them: PAX headers with times, a name of more than 100 bytes, a comment, streamed
/// entries whose sizes stand behind them, zip64.
#[test]
fn common_archives_are_read() {
    let long = format!("{}/file", "folder".repeat(20));
    let times = Packed { name: b"pax".to_vec(), content: b"30 mtime=1350244992.023960108\n".to_vec(), kind: b'x' };
    let (unpacked, _place) = unpack_bytes(&tar_gz(&[times, file(&long, b"long")])).unwrap();
    assert_eq!(unpacked.files, [PathBuf::from(&long)]);
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = Header::new_ustar();
    header.set_path(&long).unwrap();
    header.set_size(4);
    header.set_cksum();
    builder.append(&header, &b"long"[..]).unwrap();
    let (unpacked, _place) = unpack_bytes(&gzip(&builder.into_inner().unwrap())).unwrap();
    assert_eq!(unpacked.files, [PathBuf::from(&long)]);

    let mut writer = zip::ZipWriter::new_stream(Vec::new());
    writer.start_file("streamed", SimpleFileOptions::default()).unwrap();
    writer.write_all(b"content").unwrap();
    writer.start_file("gr\u{f6}\u{df}e", SimpleFileOptions::default().large_file(true)).unwrap();
    writer.write_all(b"zip64").unwrap();
    writer.set_comment("a comment").unwrap();
    let (unpacked, place) = unpack_bytes(&writer.finish().unwrap().into_inner()).unwrap();
    assert_eq!(unpacked.files, [PathBuf::from("streamed"), "gr\u{f6}\u{df}e".into()]);
    assert_eq!(std::fs::read(place.into.join("gr\u{f6}\u{df}e")).unwrap(), b"zip64");
}

/// What GNU tar, and Python where it is there, make of a tree in each of their formats.
#[test]
fn archives_of_usual_programs_are_read() {
    let root = temporary();
    let top = root.path().join("top");
    std::fs::create_dir_all(top.join("folder")).unwrap();
    put(&top.join("folder/data_batch_1.bin"), &[7; 5000]);
    put(&top.join("empty"), b"");
    let python = |kind: &str| {
        let program = format!("import shutil; shutil.make_archive('out', '{kind}', '.', 'top')");
        (format!("python {kind}"), vec!["python3".to_owned(), "-c".to_owned(), program])
    };
    let tar = |format: &str| {
        let arguments = ["tar", &format!("--format={format}"), "-czf", "out.tar.gz", "top"];
        (format!("tar {format}"), arguments.map(str::to_owned).to_vec())
    };
    for (name, command) in [tar("gnu"), tar("posix"), tar("ustar"), tar("v7"), python("gztar"), python("zip")] {
        let archive = root.path().join(if name == "python zip" { "out.zip" } else { "out.tar.gz" });
        let _ = std::fs::remove_file(&archive);
        let output = std::process::Command::new(&command[0]).args(&command[1..]).current_dir(root.path()).output();
        if !output.as_ref().is_ok_and(|output| output.status.success()) {
            skip("archivers", &format!("{name} does not run here: {output:?}"));
            continue;
        }
        let place = place();
        let unpacked = unpack(&archive, &place.into).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(unpacked.bytes, 5000, "{name}");
        assert_eq!(tree(&place.into.join("top")), tree(&top), "{name}");
    }
}

/// Well-formed trees: folders and files under names that nothing speaks against.
fn trees() -> impl Strategy<Value = Vec<Packed>> {
    let part = "[a-z0-9_\u{e4}][a-z0-9_. -]{0,7}";
    let path = proptest::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"));
    let content = proptest::collection::vec(any::<u8>(), 0..3000);
    proptest::collection::btree_map(path, proptest::option::of(content), 1..12).prop_map(|entries| {
        let all: Vec<_> = entries.keys().cloned().collect();
        let has_children = |name: &str| all.iter().any(|other| other.starts_with(&format!("{name}/")));
        entries
            .into_iter()
            .map(|(name, content)| match content {
                Some(content) if !has_children(&name) => file(&name, &content),
                _ => folder(&format!("{name}/")),
            })
            .chain([file("Last", b"one file at least")])
            .collect()
    })
}

/// Anything that might lead somewhere.
fn hostile() -> impl Strategy<Value = Vec<Packed>> {
    let part = prop_oneof![
        3 => Just("..".to_owned()),
        1 => Just(String::new()),
        1 => Just(".".to_owned()),
        3 => "[aAbB]",
        1 => Just("into".to_owned()),
        1 => Just("kept".to_owned()),
        1 => Just("..\\..\\evil".to_owned()),
        1 => any::<String>(),
    ];
    let text = proptest::collection::vec(part, 1..5).prop_map(|parts| parts.join("/").into_bytes());
    let name = prop_oneof![9 => text, 1 => proptest::collection::vec(any::<u8>(), 0..150)];
    let kind = prop_oneof![4 => Just(b'0'), 3 => Just(b'5'), 2 => Just(b'2'), 1 => Just(b'1'), 1 => any::<u8>()];
    let entry = (name, kind, proptest::collection::vec(any::<u8>(), 0..20)).prop_map(|(name, kind, content)| Packed {
        content: if kind == b'0' { content } else { Vec::new() },
        name,
        kind,
    });
    proptest::collection::vec(entry, 1..5)
}

/// Nothing but `into` has changed, and in it nothing that the archive did not name.
fn check_inside(result: Result<(Unpacked, Place), UnpackError>) {
    let Ok((unpacked, place)) = result else { return };
    let root = place.root.path();
    let outside = |path: &PathBuf| !root.join(path).starts_with(&place.into);
    let found: Vec<_> = tree(root).into_keys().filter(outside).collect();
    assert_eq!(found, [PathBuf::from("a")], "{unpacked:?}");
    for path in &unpacked.files {
        assert!(place.into.join(path).symlink_metadata().unwrap().is_file(), "{path:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn trees_come_out_byte_for_byte(entries in trees()) {
        let mut expected = Tree::new();
        for Packed { name, content, kind } in &entries {
            let path = PathBuf::from(std::str::from_utf8(name).unwrap().trim_end_matches('/'));
            expected.extend(path.ancestors().skip(1).filter(|p| *p != Path::new("")).map(|p| (p.to_path_buf(), None)));
            expected.insert(path, (*kind == b'0').then(|| content.clone()));
        }
        for archive in [tar_gz(&entries), zipped(&entries)] {
            let root = temporary();
            let into = root.path().join("into");
            let unpacked = unpack(&write_archive(&root, &archive), &into).unwrap();
            prop_assert_eq!(&tree(&into), &expected);
            prop_assert_eq!(unpacked.files.len(), expected.values().flatten().count());
            prop_assert_eq!(unpacked.bytes, expected.values().flatten().map(|c| c.len() as u64).sum::<u64>());
        }
    }

    #[test]
    fn nothing_is_written_outside(entries in hostile()) {
        check_inside(unpack_bytes(&tar_gz(&entries)));
        check_inside(unpack_bytes(&zipped(&entries)));
    }

    #[test]
    fn damage_never_panics(entries in trees(), damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4), 1..5)) {
        for whole in [tar_gz(&entries), zipped(&entries)] {
            let mut bytes = whole;
            for (position, value, how) in &damage {
                let position = position.index(bytes.len());
                match how {
                    0 => bytes[position] ^= 1 << (value % 8),
                    1 => bytes[position] = *value,
                    2 => drop(bytes.drain(position..(position + 1 + *value as usize % 8).min(bytes.len()))),
                    _ => bytes.insert(position, *value),
                }
                if bytes.is_empty() {
                    break;
                }
            }
            check_inside(unpack_bytes(&bytes));
        }
    }
}

/// Hashes of known content, in pieces of every size, and of a file.
#[test]
fn hashes_are_those_of_the_usual_programs() {
    let content: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    let root = temporary();
    let path = root.path().join("file");
    fs::write(&path, &content).unwrap();
    for (algorithm, empty, whole) in [
        (
            Algorithm::Sha256,
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "3c65ea93424a9c362fec0e3a69ea36031e8a358441479dd665cc6110eabe7b08",
        ),
        (Algorithm::Md5, "d41d8cd98f00b204e9800998ecf8427e", "34fadf2975834e9a357ec41d3e6df067"),
        (Algorithm::GitBlob, "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391", "651b52c1168169c5cb9fd7d14de95c6b70311638"),
    ] {
        assert_eq!(Hasher::new(algorithm, 0).finish(), empty);
        assert_eq!(hash_file(&path, algorithm).unwrap(), whole);
        for size in [1, 63, 64, 65, 4096, 299_999] {
            let mut hasher = Hasher::new(algorithm, content.len() as u64);
            content.chunks(size).for_each(|piece| hasher.update(piece));
            assert_eq!(hasher.finish(), whole, "{algorithm:?} in pieces of {size}");
        }
    }
}

/// On a disk that fills up: the disk's error, nothing left, and what was there before unharmed. Runs itself again in a
/// name space of its own, where anybody may mount a small disk.
#[test]
fn a_full_disk_leaves_nothing() {
    const DISK: &str = "SDCLR_TEST_SMALL_DISK";
    let Some(disk) = std::env::var_os(DISK) else {
        let disk = temporary();
        let script = r#"mount -t tmpfs -o size=64k none "$SDCLR_TEST_SMALL_DISK" || exit 75; exec "$0" --exact a_full_disk_leaves_nothing"#;
        let child = std::process::Command::new("unshare")
            .args(["-rm", "sh", "-c", script])
            .arg(std::env::current_exe().unwrap())
            .env(DISK, disk.path())
            .output();
        match child {
            Ok(output) if output.status.success() => {}
            Ok(output) if output.status.code() == Some(101) => {
                panic!("{}", String::from_utf8_lossy(&output.stdout))
            }
            other => skip("mounts", &format!("no small disk can be mounted here ({other:?})")),
        }
        return;
    };
    let into = Path::new(&disk).join("into");
    let root = temporary();
    unpack(&write_archive(&root, &tar_gz(&[file("a", b"first")])), &into).unwrap();
    let before = tree(Path::new(&disk));
    let noise: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let entries = [file("a", b"second"), file("b", &noise)];
    for archive in [tar_gz(&entries), zipped(&entries)] {
        let error = unpack(&write_archive(&root, &archive), &into).unwrap_err();
        assert!(error.to_string().contains("free some space"), "{error}");
        assert_eq!(tree(Path::new(&disk)), before);
    }
}
