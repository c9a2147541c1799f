//! Colour in terminals and pipes, by the variables that all programs know; what is logged, by RUST_LOG.
use crate::pty::{run, silent};
use crate::support::{Folder, asset};

/// What is printed on a terminal, or into a pipe.
fn printed(terminal: bool, args: &[&str], variables: &[(&str, &str)]) -> String {
    let folder = Folder::new();
    let mut command = folder.command(args);
    command.env("TERM", "xterm-256color");
    command.envs(variables.iter().copied());
    if terminal {
        return run(&mut command, silent).text();
    }
    let output = command.output().expect("it starts");
    let bytes = [output.stdout, output.stderr].concat();
    String::from_utf8(bytes).expect("the program prints UTF-8")
}

#[test]
fn help_and_log_have_colour_in_a_terminal_and_the_variables_say_otherwise() {
    let model = asset("tiny-ddpm");
    let log = [
        "ddpm",
        "--model",
        &model,
        "--print-schedule",
        "--steps",
        "1",
    ];
    // The variables, and whether there is colour in a terminal and in a pipe.
    let cases = [
        (&[][..], true, false),
        (&[("NO_COLOR", "1")], false, false),
        (&[("NO_COLOR", "")], true, false),
        (&[("CLICOLOR", "0")], false, false),
        (&[("CLICOLOR", "1")], true, false),
        (&[("CLICOLOR_FORCE", "1")], true, true),
        (&[("CLICOLOR_FORCE", "0")], true, false),
        (&[("CLICOLOR_FORCE", "1"), ("CLICOLOR", "0")], true, true),
        (&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false, false),
        (&[("TERM", "dumb")], false, false),
        (&[("TERM", "dumb"), ("CLICOLOR", "1")], false, false),
        (&[("TERM", "dumb"), ("CLICOLOR_FORCE", "1")], true, true),
    ];
    for (variables, in_terminal, in_pipe) in cases {
        for (terminal, wanted) in [(true, in_terminal), (false, in_pipe)] {
            for args in [&["-h"][..], &["txt2img", "--help"], &log] {
                // A filter that is none makes a warning.
                let variables = [variables, &[("RUST_LOG", "diffuse=loud")]].concat();
                let text = printed(terminal, args, &variables);
                assert!(text.contains("Usage:") || text.contains("warning: RUST_LOG"));
                assert_eq!(
                    text.contains("\x1b["),
                    wanted,
                    "terminal {terminal}, {variables:?}: {text:?}"
                );
            }
        }
    }
}

#[test]
fn errors_are_one_line_without_colour_everywhere() {
    for terminal in [true, false] {
        for variables in [&[][..], &[("CLICOLOR_FORCE", "1")], &[("NO_COLOR", "1")]] {
            for args in [
                &["txt2img", "--scheduller", "ddim"][..],
                &["ddpm", "--model", "./none"],
            ] {
                let text = printed(terminal, args, variables);
                assert!(text.starts_with("diffuse: "), "{text:?}");
                assert_eq!(text.lines().count(), 1, "{text:?}");
                assert!(!text.contains('\x1b'), "{text:?}");
            }
        }
    }
}

#[test]
fn rust_log_filters_in_a_terminal_as_in_a_pipe() {
    let model = asset("tiny-ddpm");
    for terminal in [true, false] {
        let said = |filter: &str| {
            let args = [
                "ddpm", "--model", &model, "--steps", "1", "--seed", "1", "--device", "cpu",
            ];
            printed(terminal, &args, &[("RUST_LOG", filter)])
        };
        assert!(!said("error").contains("1 step of"));
        assert!(said("diffuse=info").contains("1 step of"));
        // An empty one is none.
        assert!(said("").contains("1 step of"));
    }
}
