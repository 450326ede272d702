use std::process::ExitCode;

fn main() -> ExitCode {
    sdclr::cli::main()
}
