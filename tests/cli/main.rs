//! The program as its user meets it: arguments in, exit code, files and text out.
mod completions;
mod errors;
mod help;
mod pipelines;
mod schedule;
mod smoke;
mod support;
