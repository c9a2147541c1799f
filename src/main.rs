fn main() -> std::process::ExitCode {
    // candle's errors would carry a trace for developers where RUST_BACKTRACE asks for that of a panic.
    if std::env::var_os("RUST_LIB_BACKTRACE").is_none() {
        // SAFETY: this is the only thread so far.
        unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") };
    }
    diffuse::cli::main()
}
