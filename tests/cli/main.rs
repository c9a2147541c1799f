//! The program as its user meets it: arguments in, exit code, files and text out.
#[cfg(target_os = "linux")]
mod bar;
mod batches;
mod card;
#[cfg(target_os = "linux")]
mod colours;
mod completions;
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod cuda;
mod demo;
mod downloads;
mod errors;
mod families;
mod files;
mod help;
mod hostile {
    mod configs;
    mod faults;
    mod files;
    mod kills;
    mod support;
}
mod hub {
    mod broken;
    mod cache;
    mod elsewhere;
    mod refused;
    pub mod server;
    mod settings;
}
mod look;
mod loras;
mod names;
mod parts;
mod pipelines;
mod provenance;
#[cfg(target_os = "linux")]
mod pty;
mod replay;
mod schedule;
mod shards;
#[cfg(target_os = "linux")]
mod show;
#[cfg(unix)]
mod signals;
mod single;
mod smoke;
mod support;
