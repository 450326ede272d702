//! Compiles the C++ side, lists the embedded suites, and makes every executable of the package find libtorch without `LD_LIBRARY_PATH`.

use std::path::PathBuf;

const FILES: [&str; 8] =
    ["shim.cpp", "graph.cpp", "group.cpp", "nccl.cpp", "weights.cpp", "norm.cpp", "nvrtc.cpp", "throw.cpp"];

fn main() {
    embed_suites();
    for file in
        FILES.iter().chain(&["norm.cu", "augment.cpp", "augment.cu", "nccl.h", "nvrtc.h", "shared.h", "build.rs"])
    {
        println!("cargo:rerun-if-changed=harness/native/{file}");
    }
    // Set by torch-sys, the direct dependency that knows which libtorch is linked.
    let Some(lib) = std::env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        panic!("torch-sys did not say where libtorch lies; run ci/setup first, or set LIBTORCH");
    };
    let include = lib.with_file_name("include");
    if !include.join("ATen/ATen.h").is_file() {
        panic!("no libtorch headers in {}; run ci/setup, or point LIBTORCH at a PyTorch 2.11.0", include.display());
    }
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++20")
        .flag("-isystem")
        .flag(&include)
        .flag("-isystem")
        .flag(include.join("torch/csrc/api/include"))
        // Headers declare the operations that they use, and not all there are.
        .define("AT_PER_OPERATOR_HEADERS", None)
        // ATen/Parallel.h opens its parallel region in the file that includes it, and only under OpenMP.
        .flag("-fopenmp")
        .warnings(true);
    build.clone().files(FILES.map(|file| format!("harness/native/{file}"))).compile("sdclr_native");
    // Optimised in every profile. Traps and errno, which nothing reads, would prevent vectorisation. Results stay IEEE 754,
    // operation by operation.
    build
        .opt_level(3)
        .flags(["-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"])
        .file("harness/native/augment.cpp")
        .compile("sdclr_augment");
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    println!("cargo:rustc-link-lib=gomp");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}

/// Writes `EMBEDDED`, the name and the text of every file in fixtures/suites, in the order of the names.
fn embed_suites() {
    let folder = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("fixtures/suites");
    println!("cargo:rerun-if-changed={}", folder.display());
    let Ok(entries) = std::fs::read_dir(&folder) else { panic!("there is no folder {}", folder.display()) };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort_by_key(|path| path.file_stem().map(std::ffi::OsStr::to_owned));
    let entry = |path: &PathBuf| {
        let name = path.file_stem().unwrap_or_default();
        format!("({name:?}, include_str!({path:?})), ")
    };
    let entries: String = files.iter().map(entry).collect();
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("suites.rs");
    let text = format!("const EMBEDDED: &[(&str, &str)] = &[{entries}];\n");
    #[expect(clippy::disallowed_methods, reason = "cargo gives the folder to this script alone")]
    let written = std::fs::write(&out, text);
    if let Err(error) = written {
        panic!("cannot write {}: {error}", out.display());
    }
}
