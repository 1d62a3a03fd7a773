//! How much memory this process may still take.

use std::fs;

/// Bytes that can still be allocated: what the machine has available, or what is left of the control group's limit if
/// that is less. `None` where the system does not tell.
///
/// Source: `MemAvailable` of `/proc/meminfo`, and `memory.max`, `memory.current` of the process's group (version 2) or
/// their elders of version 1.
pub fn available() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let machine = mem_available(&meminfo)?;
    let group = group_left("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")
        .or_else(|| {
            let folder = "/sys/fs/cgroup/memory";
            group_left(&format!("{folder}/memory.limit_in_bytes"), &format!("{folder}/memory.usage_in_bytes"))
        })
        .unwrap_or(u64::MAX);
    Some(machine.min(group))
}

/// The most bytes of memory that this process has held at a time; `None` where the system does not tell.
///
/// Source: `VmHWM` of `/proc/self/status`.
pub fn peak() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// The bytes of memory that this process holds now, files that it has mapped and read among them; `None` where the system
/// does not tell.
///
/// Source: `VmRSS` of `/proc/self/status`.
pub fn held() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// `MemAvailable` in bytes.
fn mem_available(meminfo: &str) -> Option<u64> {
    kibibytes(meminfo, "MemAvailable:")
}

/// The field that begins with `name`, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Limit less use; `None` where there is no limit (`max`) or no such group.
fn group_left(limit: &str, used: &str) -> Option<u64> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    Some(number(limit)?.saturating_sub(number(used)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_counts_kibibytes() {
        assert_eq!(mem_available("MemTotal: 9 kB\nMemAvailable:   12 kB\n"), Some(12 * 1024));
        assert_eq!(mem_available("MemTotal: 9 kB\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_tells_what_is_available_and_what_was_held() {
        assert!(available().is_some_and(|bytes| bytes > 0));
        let held = held();
        assert!(held.is_some_and(|bytes| bytes > 0) && peak() >= held);
    }
}
