//! What a container or a shell leaves of a Linux machine's memory: control groups of both versions, and `ulimit -v`.
use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// Bytes that this process may still take; None where nothing limits it.
pub fn left() -> Option<u64> {
    let groups = read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = left_by_groups(Path::new("/sys/fs/cgroup"), &groups);
    groups.into_iter().chain(left_of_addresses()).min()
}

/// The files of a control group (the kernel's cgroup-v1/memory and cgroup-v2).
struct Version {
    limit: &'static str,
    usage: &'static str,
    /// Pages of files, in memory.stat: they count as used and make way.
    files: [&'static str; 2],
}

const V1: Version = Version {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    files: ["total_inactive_file ", "total_active_file "],
};
const V2: Version = Version {
    limit: "memory.max",
    usage: "memory.current",
    files: ["inactive_file ", "active_file "],
};

/// The least that is left in the groups which `lines`, a process's /proc/PID/cgroup, name: `number:controllers:path`.
fn left_by_groups(root: &Path, lines: &str) -> Option<u64> {
    let groups = lines.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let (root, version) = match controllers {
            "" => (root.to_owned(), &V2),
            _ if controllers.split(',').any(|name| name == "memory") => (root.join("memory"), &V1),
            _ => return None,
        };
        let group = root.join(path.trim_start_matches('/'));
        Some((root, group, version))
    });
    let left = |(root, group, version): (PathBuf, PathBuf, &Version)| {
        // A limit holds for the groups below it. Where a container sees no path but the machine's, its own group is the root.
        let folders = group
            .ancestors()
            .take_while(|folder| folder.starts_with(&root));
        folders.filter_map(|folder| version.left(folder)).min()
    };
    groups.filter_map(left).min()
}

impl Version {
    fn left(&self, folder: &Path) -> Option<u64> {
        let read = |name| read_to_string(folder.join(name)).ok();
        let number = |text: String| text.trim().parse::<u64>().ok();
        // "max" where there is none.
        let limit = read(self.limit).and_then(number)?;
        let usage = read(self.usage).and_then(number)?;
        let stat = read("memory.stat").unwrap_or_default();
        let files = self.files.iter().filter_map(|name| {
            let mut lines = stat.lines().filter_map(|line| line.strip_prefix(name));
            lines.next()?.trim().parse::<u64>().ok()
        });
        Some(limit.saturating_sub(usage.saturating_sub(files.sum())))
    }
}

#[cfg(unix)]
fn left_of_addresses() -> Option<u64> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::As).current?;
    Some(limit.saturating_sub(super::kilobytes("/proc/self/status", "VmSize:")?))
}

#[cfg(not(unix))]
fn left_of_addresses() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(folder: &Path, files: &[(&str, &str)]) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        files
            .iter()
            .try_for_each(|(name, text)| std::fs::write(folder.join(name), text))
    }

    #[test]
    fn the_tightest_group_above_a_process_counts_and_pages_of_files_make_way() -> std::io::Result<()>
    {
        let root = tempfile::tempdir()?;
        let stat = "anon 100\ninactive_file 200\nactive_file 100\nfile 900\n";
        let tight = [
            ("memory.max", "1000\n"),
            ("memory.current", "700\n"),
            ("memory.stat", stat),
        ];
        group(&root.path().join("pods"), &tight)?;
        group(
            &root.path().join("pods/one"),
            &[("memory.max", "max\n"), ("memory.current", "1\n")],
        )?;
        let left = |lines| left_by_groups(root.path(), lines);
        assert_eq!(left("0::/pods/one\n"), Some(600));
        assert_eq!(left("0::/\n"), None);
        assert_eq!(left("0::/elsewhere\n"), None);
        assert_eq!(left("nonsense\n1:cpu\n"), None);
        Ok(())
    }

    #[test]
    fn groups_of_the_first_version_count_too_and_so_does_a_containers_root() -> std::io::Result<()>
    {
        let root = tempfile::tempdir()?;
        let files = [
            ("memory.limit_in_bytes", "5000"),
            ("memory.usage_in_bytes", "1500"),
            ("memory.stat", "inactive_file 1\ntotal_inactive_file 500\n"),
        ];
        group(&root.path().join("memory"), &files)?;
        let lines = "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n0::/docker/ab\n";
        assert_eq!(left_by_groups(root.path(), lines), Some(4000));
        Ok(())
    }
}
