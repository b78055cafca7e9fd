//! Where and when something was measured, without which a number is a rumour.
//!
//! It asks the kernel and the clock. It does not know what was measured.

use std::fmt;
use std::fs;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The machine, the code and the moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Surroundings {
    /// When, in UTC: `2026-11-21T17:00:00Z`. Later ones are greater as text, too.
    pub date: String,
    /// The processor's name, as it gives it.
    pub cpu: String,
    /// How many of them this process may use.
    pub cpus: usize,
    /// Whether they are those of a virtual machine.
    pub is_virtual: bool,
    /// The kernel's release.
    pub kernel: String,
    /// The version of the libraries.
    pub version: String,
    /// The commit they were built from; empty if nobody knows.
    pub commit: String,
}

impl Surroundings {
    /// Here and now.
    pub fn now() -> Surroundings {
        let uname = rustix::system::uname();
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Surroundings {
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            cpu: model(&cpu).unwrap_or_else(|| uname.machine().to_string_lossy().into_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            is_virtual: is_virtual(&cpu),
            kernel: uname.release().to_string_lossy().into_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: option_env!("SENDRIGHT_PERF_COMMIT").unwrap_or_default().to_owned(),
        }
    }

    /// The processor, and how many of them.
    pub fn machine(&self) -> String {
        let cpus = if self.cpus == 1 { "1 CPU".to_owned() } else { format!("{} CPUs", self.cpus) };
        let place = if self.is_virtual { " in a virtual machine" } else { "" };
        format!("{}, {cpus}{place}", self.cpu)
    }

    /// The day alone.
    pub fn day(&self) -> &str {
        self.date.split('T').next().unwrap_or_default()
    }
}

impl fmt::Display for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, Linux {}, sendright {}", self.machine(), self.kernel, self.version)?;
        if !self.commit.is_empty() {
            write!(f, ", commit {}", self.commit)?;
        }
        write!(f, ", {}", self.day())
    }
}

/// The name of the first processor of `/proc/cpuinfo`; not every architecture gives one.
fn model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    let (_, name) = line.split_once(':')?;
    Some(name.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn is_virtual(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nmodel name\t: Some  CPU @ 2.00GHz\nflags\t\t: fpu hypervisor\n";

    #[test]
    fn a_processor_has_its_name_and_says_that_it_is_not_real() {
        assert_eq!(model(CPUINFO).as_deref(), Some("Some CPU @ 2.00GHz"));
        assert!(is_virtual(CPUINFO));
        assert!(!is_virtual("flags : fpu"));
        assert_eq!(model("CPU implementer : 0x41\n"), None);
    }

    #[test]
    fn a_machine_is_its_processors() {
        let here = Surroundings { cpu: "Some CPU".to_owned(), ..Surroundings::now() };
        let machine = |cpus, is_virtual| Surroundings { cpus, is_virtual, ..here.clone() }.machine();
        assert_eq!(machine(1, false), "Some CPU, 1 CPU");
        assert_eq!(machine(2, true), "Some CPU, 2 CPUs in a virtual machine");
    }

    #[test]
    fn here_and_now_is_known() {
        let now = Surroundings::now();
        assert!(!now.cpu.is_empty() && now.cpus > 0 && !now.kernel.is_empty());
        assert_eq!(now.day().len(), "2026-11-21".len());
        assert!(now.date.ends_with('Z'));
        let words = now.to_string();
        assert!(words.starts_with(&now.machine()) && words.contains(&now.kernel), "{words}");
        assert!(words.contains(now.day()), "{words}");
    }
}
