//! Limits that will bite, what they are here, and what to do about each.
//!
//! It owns the advice. It reads limits and changes none.

use std::fs;

use rustix::process::{Resource, Rlimit};
use serde::Serialize;

/// One limit.
#[derive(Debug, Serialize)]
pub struct Limit {
    pub name: &'static str,
    /// What it is here; `None` where it cannot be found out.
    pub value: Option<String>,
    pub meaning: String,
    pub advice: String,
}

/// Enough descriptors for a server with a few hundred holders.
const DESCRIPTORS_COMFORTABLE: u64 = 4_096;

/// All of them.
pub fn all() -> Vec<Limit> {
    let descriptors = rustix::process::getrlimit(Resource::Nofile);
    vec![
        open_descriptors(&descriptors),
        descriptors_in_flight(&descriptors),
        packet_bytes(),
        packet_bytes_raised(),
        queue_length(),
        io_uring_refused(),
        memory_locked(),
        cpus(),
        cpu_quota(),
    ]
}

fn open_descriptors(limit: &Rlimit) -> Limit {
    let advice = match (limit.current, limit.maximum) {
        (Some(soft), hard) if soft < DESCRIPTORS_COMFORTABLE && hard.is_none_or(|hard| hard > soft) => {
            let hard = amount(hard);
            format!("raise it yourself with `ulimit -n {hard}` (or setrlimit), or LimitNOFILE= in a unit")
        }
        (Some(soft), _) if soft < DESCRIPTORS_COMFORTABLE => {
            "the hard limit is as low: have it raised (LimitNOFILE= in a unit, limits.conf, docker --ulimit)"
                .to_string()
        }
        _ => "nothing to do".to_string(),
    };
    Limit {
        name: "RLIMIT_NOFILE",
        value: Some(format!("{} soft, {} hard", amount(limit.current), amount(limit.maximum))),
        meaning:
            "Descriptors of this process. With none left a receive waits; what the kernel drops is told."
                .into(),
        advice,
    }
}

fn descriptors_in_flight(limit: &Rlimit) -> Limit {
    let root = rustix::process::geteuid().is_root();
    let advice = match root {
        true => "root is exempt (CAP_SYS_RESOURCE, CAP_SYS_ADMIN): test as an ordinary user too",
        false => {
            "receive promptly, keep hostile programs under another uid, and raise the soft limit of senders"
        }
    };
    Limit {
        name: "descriptors in flight",
        value: Some(format!("{} for all processes of uid {}", amount(limit.current), uid())),
        meaning: "Sent and not yet received, counted by user against the sender's soft RLIMIT_NOFILE: \
                  ETOOMANYREFS beyond."
            .into(),
        advice: advice.into(),
    }
}

fn packet_bytes() -> Limit {
    let value = sysctl("net/core/wmem_default");
    let small = number(&value).is_some_and(|bytes| bytes < 2 * ring::PACKET_BYTES_MAX as u64);
    let advice = match small {
        true => "set it back to 212992 or more: the largest packet of the protocol has to fit",
        false => "nothing to do",
    };
    Limit {
        name: "net.core.wmem_default",
        value,
        meaning: "Send buffer of a new socket: its largest packet (this less 32 bytes) and its queue.".into(),
        advice: advice.into(),
    }
}

fn packet_bytes_raised() -> Limit {
    Limit {
        name: "net.core.wmem_max",
        value: sysctl("net/core/wmem_max"),
        meaning: "As far as SO_SNDBUF can be raised without privilege, for longer queues.".into(),
        advice: "nothing to do: the protocol stays below 100 KiB a packet".into(),
    }
}

fn queue_length() -> Limit {
    Limit {
        name: "net.unix.max_dgram_qlen",
        value: sysctl("net/unix/max_dgram_qlen"),
        meaning: "Does not bind a connected SOCK_SEQPACKET pair; only its buffer does.".into(),
        advice: "nothing to do".into(),
    }
}

fn io_uring_refused() -> Limit {
    let value = sysctl("kernel/io_uring_disabled");
    let advice = match value.as_deref() {
        Some("0") => {
            "nothing to do; a container's seccomp profile may refuse it all the same (see the driver above)"
        }
        Some("1") => {
            "only members of kernel.io_uring_group may: join it, or `sysctl kernel.io_uring_disabled=0`"
        }
        Some(_) => "`sysctl kernel.io_uring_disabled=0`, or be content with epoll",
        None => "this kernel has no such switch (before 6.6): nothing to do",
    };
    Limit {
        name: "kernel.io_uring_disabled",
        value,
        meaning: "Whether the administrator lets processes have io_uring; without it the driver is epoll."
            .into(),
        advice: advice.into(),
    }
}

fn memory_locked() -> Limit {
    let limit = rustix::process::getrlimit(Resource::Memlock);
    Limit {
        name: "RLIMIT_MEMLOCK",
        value: Some(format!("{} bytes soft, {} hard", amount(limit.current), amount(limit.maximum))),
        meaning: "Memory of rings and registered buffers counts against it before Linux 5.12.".into(),
        advice: "nothing to do on a newer kernel; `ulimit -l` on an older one".into(),
    }
}

fn cpus() -> Limit {
    let allowed = rustix::thread::sched_getaffinity(None).map(|set| set.count()).ok();
    let advice = match allowed {
        Some(1) => {
            "caller and server take turns on it: do not spin, and expect calls to cost a switch each way"
        }
        _ => "nothing to do",
    };
    Limit {
        name: "CPUs allowed",
        value: allowed.map(|count| count.to_string()),
        meaning: "CPUs this process may run on. Waking an idle one costs more than a call.".into(),
        advice: advice.into(),
    }
}

fn cpu_quota() -> Limit {
    let quota = fs::read_to_string("/proc/self/cgroup").ok().and_then(|cgroups| {
        let own = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?.to_string();
        fs::read_to_string(format!("/sys/fs/cgroup{own}/cpu.max")).ok()
    });
    let value = quota.as_deref().and_then(quota_text);
    let advice = match value.as_deref() {
        None | Some("none") => "nothing to do",
        Some(_) => "spinning uses it up; a process that has none left sleeps until the next period",
    };
    Limit {
        name: "CPU quota",
        value: value.or(Some("none".into())),
        meaning: "Time the cgroup of this process may use of each period.".into(),
        advice: advice.into(),
    }
}

/// `max 100000` or `50000 100000`, as the kernel writes it.
fn quota_text(line: &str) -> Option<String> {
    match line.split_once(' ')? {
        ("max", _) => Some("none".to_string()),
        (quota, period) => {
            let cpus = quota.trim().parse::<f64>().ok()? / period.trim().parse::<f64>().ok()?;
            Some(format!("{cpus:.2} CPUs"))
        }
    }
}

fn sysctl(name: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/{name}")).ok().map(|value| value.trim().to_string())
}

fn number(value: &Option<String>) -> Option<u64> {
    value.as_deref()?.parse().ok()
}

fn amount(limit: Option<u64>) -> String {
    limit.map_or("unlimited".to_string(), |limit| limit.to_string())
}

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_told_in_cpus() {
        assert_eq!(quota_text("max 100000\n").as_deref(), Some("none"));
        assert_eq!(quota_text("50000 100000\n").as_deref(), Some("0.50 CPUs"));
        assert_eq!(quota_text("nonsense"), None);
    }

    #[test]
    fn every_limit_has_a_meaning_and_an_advice() {
        for limit in all() {
            assert!(!limit.meaning.is_empty() && !limit.advice.is_empty(), "{}", limit.name);
        }
    }
}
