//! How many processors this process may use. In: the machine, the affinity mask (taskset, a scheduler's binding), the
//! quotas of its cgroup and of those around it (containers), `OMP_NUM_THREADS`. Out: how many threads pay.

use std::path::{Path, PathBuf};

/// What limits the processors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cores {
    /// Processors of the machine that are online.
    pub machine: usize,
    /// Those that this process may run on.
    pub affinity: usize,
    /// The smallest quota, in processors; `None` where there is none.
    pub quota: Option<f64>,
    /// `OMP_NUM_THREADS`.
    pub asked: Option<usize>,
}

impl Cores {
    /// What holds for this process now.
    pub fn available() -> Self {
        // SAFETY: only asks.
        let machine = usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1).max(1);
        let asked = std::env::var("OMP_NUM_THREADS").unwrap_or_default();
        Self {
            machine,
            affinity: affinity().unwrap_or(machine),
            quota: quota(Path::new("/")),
            asked: first_number(&asked),
        }
    }

    /// Threads that can run at once: `OMP_NUM_THREADS` where it is set; else the processors of the affinity mask, or the
    /// quota where that is less, rounded down, at least 1.
    pub fn used(&self) -> usize {
        let quota = self.quota.map_or(usize::MAX, |quota| quota as usize);
        self.asked.unwrap_or(self.affinity.min(quota)).max(1)
    }

    /// Threads that load images: those of [`Cores::used`]. But torchrun sets `OMP_NUM_THREADS` to 1 where nobody has, and
    /// says how many processes it has started here: then each loads on its share of the processors.
    pub fn loading(&self) -> usize {
        let number = |name| std::env::var(name).ok().and_then(|text| first_number(&text));
        self.shared(std::env::var_os("TORCHELASTIC_RUN_ID").and(number("LOCAL_WORLD_SIZE")))
    }

    fn shared(&self, processes: Option<usize>) -> usize {
        match (processes, self.asked) {
            (Some(processes), Some(1)) => (Self { asked: None, ..*self }.used() / processes).max(1),
            _ => self.used(),
        }
    }
}

impl std::fmt::Display for Cores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} processors", self.affinity, self.machine)?;
        if let Some(quota) = self.quota {
            write!(f, ", quota {quota:.2} (cgroup)")?;
        }
        self.asked.map_or(Ok(()), |asked| write!(f, ", OMP_NUM_THREADS={asked}"))
    }
}

/// Sets libtorch's threads: to `threads`, or to what [`Cores::used`] says where libtorch would take more. Child processes
/// inherit it. As one of the first things in a process, while it has one thread.
pub fn set_threads(threads: Option<usize>) {
    let name = "OMP_NUM_THREADS";
    let cores = Cores::available();
    let count = match threads {
        Some(threads) => threads,
        // Its runtime reads this by itself.
        None if cores.asked.is_some() => return,
        None => cores.used().min(usize::try_from(tch::get_num_threads()).unwrap_or(1)),
    };
    if threads.is_some() {
        // SAFETY: no other thread of ours is there that could read the environment.
        unsafe { std::env::set_var(name, count.to_string()) };
    }
    tch::set_num_threads(i32::try_from(count).unwrap_or(i32::MAX));
}

/// Restricts this process, and those that it starts, to the first `count` of the processors that it may use. While it has one
/// thread, as in [`set_threads`].
///
/// # Errors
/// There are fewer; the error is their number.
pub fn restrict(count: usize) -> Result<(), usize> {
    let mask = affinity_mask().unwrap_or_default();
    let bits = mask.iter().enumerate().flat_map(|(word, bits)| (0..64).map(move |bit| (word, bits & 1 << bit)));
    let allowed: Vec<(usize, u64)> = bits.filter(|(_, bit)| *bit != 0).collect();
    if !(1..=allowed.len()).contains(&count) {
        return Err(allowed.len());
    }
    let mut kept = vec![0_u64; mask.len()];
    allowed[..count].iter().for_each(|(word, bit)| kept[*word] |= bit);
    // SAFETY: the call reads the mask's length, no more.
    match unsafe { libc::sched_setaffinity(0, kept.len() * 8, kept.as_ptr().cast()) } {
        0 => set_threads(Some(count)),
        _ => return Err(allowed.len()),
    }
    Ok(())
}

/// The first of the numbers, one a level of nesting, that `OMP_NUM_THREADS` holds.
fn first_number(text: &str) -> Option<usize> {
    text.split(',').next()?.trim().parse().ok().filter(|count| *count > 0)
}

/// Processors in the affinity mask.
fn affinity() -> Option<usize> {
    let count = affinity_mask()?.iter().map(|word| word.count_ones() as usize).sum();
    Some(count).filter(|count| *count > 0)
}

/// The affinity mask, which may be of any length.
fn affinity_mask() -> Option<Vec<u64>> {
    for words in [16, 256, 4096] {
        let mut mask = vec![0_u64; words];
        // SAFETY: the call writes at most the length of the mask.
        let written = unsafe { libc::sched_getaffinity(0, words * 8, mask.as_mut_ptr().cast()) };
        if written == 0 {
            return Some(mask);
        }
    }
    None
}

/// The smallest quota of the process's cgroup and of all around it, under either version. `root` is `/`.
fn quota(root: &Path) -> Option<f64> {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let (cgroup, mounts) = (read(&root.join("proc/self/cgroup")), read(&root.join("proc/self/mountinfo")));
    let quotas = groups(&cgroup, &mounts).into_iter().flat_map(|group| {
        let place = root.join(group.mount.strip_prefix("/").unwrap_or(&group.mount));
        // In a container the path may be that of the host, which is not there: then the mount is the process's own.
        let inside: Vec<PathBuf> = group.path.ancestors().map(|path| place.join(path)).collect();
        inside.into_iter().filter_map(move |folder| match group.version {
            Version::One => v1(&read(&folder.join("cpu.cfs_quota_us")), &read(&folder.join("cpu.cfs_period_us"))),
            Version::Two => v2(&read(&folder.join("cpu.max"))),
        })
    });
    quotas.min_by(f64::total_cmp)
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Version {
    One,
    Two,
}

/// A cgroup of the process: where its hierarchy is mounted, and the path below that.
#[derive(Debug, PartialEq)]
struct Group {
    version: Version,
    mount: PathBuf,
    path: PathBuf,
}

/// The cgroups that can limit processors, of `/proc/self/cgroup` and `/proc/self/mountinfo`.
fn groups(cgroup: &str, mounts: &str) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in cgroup.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let version = match controllers {
            "" => Version::Two,
            named if named.split(',').any(|name| name == "cpu") => Version::One,
            _ => continue,
        };
        for mount in mounts.lines() {
            let Some((place, kind)) = mount.split_once(" - ") else { continue };
            let (place, kind): (Vec<&str>, Vec<&str>) = (place.split(' ').collect(), kind.split(' ').collect());
            let fits = match version {
                Version::Two => kind.first() == Some(&"cgroup2"),
                Version::One => {
                    let options = kind.get(2).unwrap_or(&"");
                    kind.first() == Some(&"cgroup") && options.split(',').any(|option| option == "cpu")
                }
            };
            let (Some(root), Some(point)) = (place.get(3), place.get(4)) else { continue };
            if fits {
                // The mount shows the hierarchy from `root` on.
                let path = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
                groups.push(Group { version, mount: PathBuf::from(point), path: path.to_path_buf() });
            }
        }
    }
    groups
}

/// Processors by `cpu.cfs_quota_us` (-1: no quota) and `cpu.cfs_period_us`.
fn v1(quota: &str, period: &str) -> Option<f64> {
    ratio(quota.trim(), period.trim())
}

/// Processors by `cpu.max`: `QUOTA PERIOD`, where the quota may be `max`.
fn v2(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    ratio(quota, period)
}

fn ratio(quota: &str, period: &str) -> Option<f64> {
    let [quota, period] = [quota, period].map(|text| text.parse::<f64>().ok().filter(|value| *value > 0.0));
    Some(quota? / period?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "30 23 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
32 23 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
";
    const V2: &str = "35 24 0:30 / /sys/fs/cgroup rw,nosuid,nodev - cgroup2 cgroup2 rw,nsdelegate\n";

    /// A machine's files, of which only these are there.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            crate::fs::write(&root.path().join(path), text.as_bytes()).unwrap();
        }
        root
    }

    #[test]
    fn quotas_of_version_1() {
        let of = |files: &[(&str, &str)]| {
            let common =
                [("proc/self/cgroup", "4:memory:/x\n3:cpu,cpuacct:/pod/box\n0::/\n"), ("proc/self/mountinfo", V1)];
            quota(machine(&[&common, files].concat()).path())
        };
        let folder = "sys/fs/cgroup/cpu,cpuacct";
        assert_eq!(of(&[]), None);
        let file = |path: &str, name: &str| format!("{folder}{path}/cpu.cfs_{name}_us");
        let [quota, period, pod_quota, pod_period] =
            [file("/pod/box", "quota"), file("/pod/box", "period"), file("/pod", "quota"), file("/pod", "period")];
        assert_eq!(of(&[(&quota, "-1\n"), (&period, "100000\n")]), None);
        assert_eq!(of(&[(&quota, "250000\n"), (&period, "100000\n")]), Some(2.5));
        // Of the pod around it.
        let pod = [(&*pod_quota, "50000\n"), (&*pod_period, "100000\n")];
        assert_eq!(of(&[(&*quota, "-1\n"), (&*period, "100000\n"), pod[0], pod[1]]), Some(0.5));
        assert_eq!(of(&[(&*quota, "250000\n"), (&*period, "100000\n"), pod[0], pod[1]]), Some(0.5));
        // A container sees its own group as the mount's root, under the path of the host.
        let inside = V1.replace("0:27 /", "0:27 /pod/box");
        let files = [
            ("proc/self/cgroup", "3:cpu,cpuacct:/pod/box\n"),
            ("proc/self/mountinfo", &*inside),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "800000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(super::quota(machine(&files).path()), Some(8.0));
    }

    #[test]
    fn quotas_of_version_2() {
        let of = |files: &[(&str, &str)]| {
            let common = [("proc/self/cgroup", "0::/slurm/job_7/step\n"), ("proc/self/mountinfo", V2)];
            quota(machine(&[&common, files].concat()).path())
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("sys/fs/cgroup/slurm/job_7/step/cpu.max", "max 100000\n")]), None);
        assert_eq!(of(&[("sys/fs/cgroup/slurm/job_7/step/cpu.max", "150000 100000\n")]), Some(1.5));
        assert_eq!(of(&[("sys/fs/cgroup/slurm/job_7/cpu.max", "400000 100000\n")]), Some(4.0));
        // Inside a container with a namespace of its own.
        let files =
            [("proc/self/cgroup", "0::/\n"), ("proc/self/mountinfo", V2), ("sys/fs/cgroup/cpu.max", "50000 100000\n")];
        assert_eq!(super::quota(machine(&files).path()), Some(0.5));
    }

    #[test]
    fn threads_are_rounded_down_and_at_least_one() {
        let cores = Cores { machine: 192, affinity: 64, quota: None, asked: None };
        assert_eq!(cores.used(), 64);
        assert_eq!(Cores { quota: Some(7.9), ..cores }.used(), 7);
        assert_eq!(Cores { quota: Some(0.5), ..cores }.used(), 1);
        assert_eq!(Cores { quota: Some(100.0), ..cores }.used(), 64);
        assert_eq!(Cores { quota: Some(0.5), asked: Some(3), ..cores }.used(), 3);
        let started = Cores { asked: Some(1), quota: None, ..cores };
        assert_eq!([started.shared(None), started.shared(Some(8)), started.shared(Some(100))], [1, 8, 1]);
        assert_eq!(Cores { asked: Some(3), ..cores }.shared(Some(8)), 3);
        assert_eq!(["8", " 4,2 ", "0", "", "x"].map(first_number), [Some(8), Some(4), None, None, None]);
        assert_eq!(cores.to_string(), "64 of 192 processors");
        let limited = Cores { quota: Some(0.5), asked: Some(3), ..cores };
        assert_eq!(limited.to_string(), "64 of 192 processors, quota 0.50 (cgroup), OMP_NUM_THREADS=3");
    }

    #[test]
    fn the_mask_of_this_process_is_heeded() {
        let count = |command: &mut std::process::Command| {
            let output = command.output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().parse::<usize>().unwrap()
        };
        assert_eq!(affinity().unwrap(), count(std::process::Command::new("nproc").env_remove("OMP_NUM_THREADS")));
    }

    /// Not a test where another one starts it: the process in a cgroup.
    #[test]
    fn says_its_quota() {
        if std::env::var_os("SDCLR_TEST_QUOTA").is_some() {
            std::process::exit(quota(Path::new("/")).map_or(0, |quota| (quota * 10.0) as i32));
        }
    }

    #[test]
    fn the_quota_of_a_real_cgroup_is_found() {
        let (v1, v2) = (Path::new("/sys/fs/cgroup/cpu"), Path::new("/sys/fs/cgroup"));
        let is_v1 = v1.join("cpu.cfs_period_us").exists();
        let group = if is_v1 { v1 } else { v2 }.join(format!("sdclr-test-{}", std::process::id()));
        let set = |name: &str, text: &str| {
            let file = std::fs::OpenOptions::new().write(true).open(group.join(name));
            file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        };
        let limited = || match is_v1 {
            true => set("cpu.cfs_period_us", "100000").and_then(|()| set("cpu.cfs_quota_us", "50000")),
            false => set("cpu.max", "50000 100000"),
        };
        if let Err(error) = std::fs::create_dir(&group).and_then(|()| limited()) {
            let _ = std::fs::remove_dir(&group);
            return eprintln!("skipped: no cgroup can be made here ({error})");
        }
        let procs = group.join("cgroup.procs");
        let status = std::process::Command::new("sh")
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .args([procs.as_os_str(), std::env::current_exe().unwrap().as_os_str()])
            .args(["--exact", "cores::tests::says_its_quota"])
            .env("SDCLR_TEST_QUOTA", "1")
            .status();
        std::fs::remove_dir(&group).unwrap();
        assert_eq!(status.unwrap().code(), Some(5));
    }
}
