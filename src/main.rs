fn main() -> std::process::ExitCode {
    diffuse::cli::main()
}
