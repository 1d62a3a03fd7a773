//! The machine: what computes, how fast the memory is, and how much of it is left.
use super::Check;
use crate::sizes::format_bytes;
use bitdelta_kernels::{Isa, read_bandwidth};
use bitdelta_model::memory;
use std::{num::NonZero, thread::available_parallelism};

/// The variable that names an instruction set.
const ISA: &str = "BITDELTA_ISA";
/// Under this, little can be served.
const LITTLE_MEMORY: u64 = 1 << 30;

/// The CPU, which instruction sets it has, and which one the kernels use.
pub(super) fn cpu() -> Check {
    let name = "cpu";
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or(std::env::consts::ARCH, |(_, model)| model.trim());
    let (used, available) = (Isa::selected(), Isa::available());
    let names: Vec<&str> = available.iter().map(|isa| isa.name()).collect();
    let found = format!("{model}; instruction sets {}; {} is used", names.join(", "), used.name());
    let asked = std::env::var(ISA).ok().filter(|asked| !asked.is_empty());
    let widest = available.iter().copied().max();
    let check = match asked {
        Some(asked) if asked != used.name() => {
            Check::warning(name, found, format!("{ISA}={asked} is none of these and has no effect"))
        }
        Some(_) if widest != Some(used) => Check::warning(name, found, format!("unset {ISA}: this CPU can do better")),
        _ if used == Isa::Scalar => {
            Check::warning(name, found, "everything works, many times slower than on a CPU with AVX2 or AVX-512")
        }
        _ => Check::ok(name, found),
    };
    check.with("model", model).with("instruction_sets", names).with("used", used.name())
}

/// How many threads can compute at a time, and how many will.
pub(super) fn cores(threads: usize) -> Check {
    let cores = cores_here();
    let (name, used) = ("cores", if threads == 0 { cores } else { threads });
    let found = format!("{cores}; {used} threads compute");
    let check = match used > cores {
        true => Check::warning(name, found, "more threads than cores wait for each other: leave --threads out"),
        false => Check::ok(name, found),
    };
    check.with("cores", cores).with("threads", used)
}

/// How much memory is left to this process.
pub(super) fn memory() -> Check {
    let name = "memory";
    match memory::available() {
        None => Check::warning(
            name,
            "the system does not tell",
            "nothing can be refused for lack of memory before it happens",
        ),
        Some(bytes) => {
            let found = format!("{} available", format_bytes(bytes));
            let check = match bytes < LITTLE_MEMORY {
                true => {
                    Check::warning(name, found, "stop other programs, or raise the limit of this group or container")
                }
                false => Check::ok(name, found),
            };
            check.with("available_bytes", bytes)
        }
    }
}

/// How fast all cores together read memory: what bounds the speed of generation.
pub(super) fn bandwidth() -> Check {
    let name = "bandwidth";
    if memory::available().is_some_and(|bytes| bytes < LITTLE_MEMORY) {
        return Check::warning(name, "not measured", "measuring takes half a gigabyte of memory");
    }
    let speed = read_bandwidth(cores_here());
    let found = format!("memory is read at {}/s: a step of generation reads the base once", format_bytes(speed as u64));
    Check::ok(name, found).with("bytes_per_second", speed.round())
}

/// Cores that this process may use.
fn cores_here() -> usize {
    available_parallelism().map_or(1, NonZero::get)
}
