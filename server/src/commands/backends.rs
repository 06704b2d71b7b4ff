//! Finding backends, `halyard backends` and `halyard devices`.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, bail};
use halyard_core::{
    Backend, Device, Door, InfoKey, LoadError, MetricKey, PropKey,
    loader::{Found, SearchPath, Trust, discover, load},
};
use serde::{Deserialize, Serialize};

use crate::{
    cli::{
        BackendsCommand, BackendsInfoArgs, BackendsListArgs, BackendsSubcommand, DevicesCommand,
        args::{DeviceArgs, SearchArgs},
        values::DeviceChoice,
    },
    ui,
};

/// Backends that are part of this program.
fn builtin() -> Vec<Backend> {
    vec![Backend::builtin(halyard_cpu::module())]
}

/// The libraries in reach, none of them loaded.
pub(super) struct Search {
    places: SearchPath,
    found: Vec<Found>,
    trust: Trust,
    /// The places were named by the user.
    explicit: bool,
    door: Option<Door>,
}

impl Search {
    pub(super) fn new(args: &SearchArgs) -> anyhow::Result<Self> {
        let places = SearchPath::standard(&args.backend_path);
        let found = through(args.door, discover(&places)?);
        let pins = args.pin.iter().cloned().collect();
        let trust = Trust { insecure: args.insecure_plugins, pins };
        Ok(Self { places, found, trust, explicit: !args.backend_path.is_empty(), door: args.door })
    }

    /// The built-in backends and every library, loaded or with what is wrong with it.
    pub(super) fn all(&self) -> Vec<Result<Backend, LoadError>> {
        let libraries = self.found.iter().map(|found| load(found, &self.trust));
        builtin().into_iter().map(Ok).chain(libraries).collect()
    }

    /// The backend of this id, or the library at this path. No other library is loaded. What the user points at comes before
    /// what is built in.
    pub(super) fn one(&self, id: &str) -> anyhow::Result<Backend> {
        let builtin = builtin().into_iter().find(|backend| backend.id() == id);
        if let Some(backend) = builtin.filter(|_| !self.explicit) {
            return Ok(backend);
        }
        if id.contains('/') {
            let found = through(self.door, discover(&SearchPath::standard(&[PathBuf::from(id)]))?);
            let [found] = found.as_slice() else { bail!("`{id}` is no library of one backend") };
            return Ok(load(found, &self.trust)?);
        }
        let is_named = |found: &&Found| {
            let manifest = found.manifest.as_ref();
            found.name == id || manifest.is_some_and(|m| m.id == id)
        };
        if let Some(found) = self.found.iter().find(is_named) {
            return Ok(load(found, &self.trust)?);
        }
        // A library may have another id than its file's name says.
        for found in &self.found {
            match load(found, &self.trust) {
                Ok(backend) if backend.id() == id => return Ok(backend),
                Ok(_) => {}
                Err(error) => tracing::warn!("{:#}", anyhow::Error::from(error)),
            }
        }
        if let Some(backend) = self::builtin().into_iter().find(|backend| backend.id() == id) {
            return Ok(backend);
        }
        bail!("there is no backend `{id}`; there are {}", self.names())
    }

    fn names(&self) -> String {
        let builtin = builtin().into_iter().map(|backend| format!("{} (built in)", backend.id()));
        let found =
            self.found.iter().map(|found| format!("{} ({})", found.name, found.path.display()));
        let names: Vec<String> = builtin.chain(found).collect();
        let places: Vec<String> =
            self.places.places().iter().map(|place| place.display().to_string()).collect();
        format!("{}; libraries were looked for in {}", names.join(", "), places.join(", "))
    }

    /// The backend that would run best here.
    fn best(&self) -> anyhow::Result<Backend> {
        let mut best: Option<(i32, Backend)> = None;
        for loaded in self.all() {
            let backend = match loaded {
                Ok(backend) => backend,
                Err(error) => {
                    tracing::warn!("{:#}", anyhow::Error::from(error));
                    continue;
                }
            };
            let score = backend.probe();
            // The first of equals: what is built in comes before libraries.
            if score > 0 && best.as_ref().is_none_or(|(other, _)| score > *other) {
                best = Some((score, backend));
            }
        }
        best.map(|(_, backend)| backend).context("no backend can run on this machine")
    }
}

/// The same libraries through the door that the user asks for.
fn through(door: Option<Door>, found: Vec<Found>) -> Vec<Found> {
    found.into_iter().map(|found| Found { door: door.or(found.door), ..found }).collect()
}

/// Opens the devices that the flags choose, one for each rank of the model.
pub(super) fn open(args: &DeviceArgs) -> anyhow::Result<Vec<Device>> {
    let backend = choose(args)?;
    let seats = seats(&backend, args)?;
    seats.into_iter().map(|(ordinal, threads)| open_ordinal(&backend, ordinal, threads)).collect()
}

/// Opens the device of one rank alone.
pub(super) fn open_rank(args: &DeviceArgs, rank: usize) -> anyhow::Result<Device> {
    let backend = choose(args)?;
    let seats = seats(&backend, args)?;
    let &(ordinal, threads) = seats.get(rank).context("there is no such rank")?;
    open_ordinal(&backend, ordinal, threads)
}

fn choose(args: &DeviceArgs) -> anyhow::Result<Backend> {
    let DeviceChoice { backend, indices } = &args.device;
    let ranks = args.tensor_parallel_size;
    if !indices.is_empty() && indices.len() != ranks {
        let (choice, count) = (&args.device, indices.len());
        bail!("--device {choice} names {count} devices, --tensor-parallel-size is {ranks}");
    }
    let search = Search::new(&args.search)?;
    match backend {
        Some(id) => search.one(id),
        None => search.best(),
    }
}

/// The device of each rank, by its number, and the threads that it may have.
fn seats(backend: &Backend, args: &DeviceArgs) -> anyhow::Result<Vec<(u32, Option<usize>)>> {
    let indices = &args.device.indices;
    if !indices.is_empty() {
        return Ok(indices.iter().map(|&index| (index, args.threads)).collect());
    }
    let ranks = args.tensor_parallel_size;
    if ranks == 1 {
        return Ok(vec![(0, args.threads)]);
    }
    let count = backend.device_count().context("the backend cannot count its devices")?;
    if usize::try_from(count).is_ok_and(|count| count >= ranks) {
        return Ok((0..).take(ranks).map(|index| (index, args.threads)).collect());
    }
    let first = open_ordinal(backend, 0, args.threads)?;
    if first.property(PropKey::INLINE) != Some(1) {
        let id = backend.id();
        bail!("--tensor-parallel-size {ranks} needs {ranks} devices, {id} has {count}");
    }
    // The host's own processor, once a rank, each with its part of the threads.
    let units =
        first.property(PropKey::COMPUTE_UNITS).and_then(|units| usize::try_from(units).ok());
    let threads = units.filter(|&threads| threads > 1);
    let threads = |rank| threads.map(|threads| threads_of(rank, ranks, threads)).or(args.threads);
    Ok((0..ranks).map(|rank| (0, threads(rank))).collect())
}

/// A rank's part of the threads; at least one.
fn threads_of(rank: usize, ranks: usize, threads: usize) -> usize {
    (threads / ranks + usize::from(rank < threads % ranks)).max(1)
}

/// Opens a backend's device. Only backends that know of threads take their number.
pub(super) fn open_ordinal(
    backend: &Backend,
    ordinal: u32,
    threads: Option<usize>,
) -> anyhow::Result<Device> {
    let count = backend.device_count().context("the backend cannot count its devices")?;
    if ordinal >= count {
        let reason = backend.info(InfoKey::PROBE_REASON);
        bail!("{}:{ordinal} is not there: the backend has {count} devices: {reason}", backend.id());
    }
    let threads = threads.map(|threads| threads.to_string());
    let options: Vec<(&str, &str)> =
        threads.as_deref().map(|threads| ("threads", threads)).into_iter().collect();
    backend
        .open(ordinal, &options)
        .with_context(|| format!("cannot open the device {}:{ordinal}", backend.id()))
}

pub(super) fn run(command: &BackendsCommand) -> anyhow::Result<()> {
    match &command.command {
        BackendsSubcommand::List(args) => list(args),
        BackendsSubcommand::Info(args) => info(args),
    }
}

/// One line of `backends list`.
#[derive(Serialize)]
struct Listed {
    id: String,
    /// `ok`, or what is wrong.
    state: String,
    version: String,
    devices: usize,
    /// How well it would run here; not at all if it is not above 0.
    score: i32,
    library: Option<PathBuf>,
}

fn list(args: &BackendsListArgs) -> anyhow::Result<()> {
    let search = Search::new(&args.search)?;
    let mut rows = Vec::new();
    for backend in builtin() {
        rows.push(listed(&describe(&backend)?));
    }
    for found in &search.found {
        rows.push(match describe_apart(found, &args.search) {
            Ok(described) => listed(&described),
            Err(error) => Listed {
                id: found.name.clone(),
                state: format!("{error:#}"),
                version: String::new(),
                devices: 0,
                score: 0,
                library: Some(found.path.clone()),
            },
        });
    }
    if args.json {
        return Ok(ui::json(&rows)?);
    }
    let cells = |row: &Listed| {
        let library = row.library.as_ref().map_or("built in".into(), |l| l.display().to_string());
        let (version, state) = (row.version.clone(), row.state.clone());
        vec![
            row.id.clone(),
            version,
            row.devices.to_string(),
            row.score.to_string(),
            library,
            state,
        ]
    };
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let table = ui::table(&["ID", "VERSION", "DEVICES", "SCORE", "LIBRARY", "STATE"], &rows);
    Ok(ui::line(format_args!("{table}"))?)
}

fn listed(described: &Described) -> Listed {
    let state = match described.score {
        score if score > 0 => "ok".to_owned(),
        _ => format!("cannot run here: {}", described.score_reason),
    };
    Listed {
        id: described.id.clone(),
        state,
        version: described.version.clone(),
        devices: described.devices.len(),
        score: described.score,
        library: described.library.clone(),
    }
}

/// Loads and describes a library in a process of its own: one that crashes takes only that down.
fn describe_apart(found: &Found, args: &SearchArgs) -> anyhow::Result<Described> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = std::process::Command::new(program);
    command.args(["backends", "info", "--json", "--log-level", "error"]);
    // With a slash, so that it is taken for a path.
    command.arg(std::path::absolute(&found.path).context("cannot find the library")?);
    if args.insecure_plugins {
        command.arg("--insecure-plugins");
    }
    if let Some(door) = args.door {
        command.arg("--door").arg(door.to_string());
    }
    for (id, hash) in &args.pin {
        command.arg("--pin").arg(format!("{id}={hash}"));
    }
    let output = command.output().context("cannot start this program again")?;
    if output.status.success() {
        return serde_json::from_slice(&output.stdout).context("its description is no JSON");
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let reason = complaint.lines().rev().find_map(|line| line.strip_prefix("error: "));
    match reason {
        Some(reason) => bail!("{reason}"),
        None => bail!("it crashed while being looked at ({})", output.status),
    }
}

/// What `backends info` tells.
#[derive(Deserialize, Serialize)]
struct Described {
    id: String,
    name: String,
    vendor: String,
    version: String,
    build: String,
    library: Option<PathBuf>,
    /// `rust` or `c`.
    door: String,
    sha256: String,
    opset: String,
    profiles: Vec<String>,
    score: i32,
    score_reason: String,
    devices: Vec<DescribedDevice>,
}

/// One device.
#[derive(Deserialize, Serialize)]
struct DescribedDevice {
    device: String,
    name: String,
    arch: String,
    driver: String,
    memory_bytes: Option<u64>,
    compute_units: Option<u64>,
    /// What it measures of itself, by the measurement's name.
    #[serde(default)]
    telemetry: BTreeMap<String, f64>,
    /// What is wrong, if it cannot be opened.
    error: Option<String>,
}

fn describe(backend: &Backend) -> anyhow::Result<Described> {
    let profiles = backend.info(InfoKey::PROFILES);
    Ok(Described {
        id: backend.id().to_owned(),
        name: backend.info(InfoKey::NAME),
        vendor: backend.info(InfoKey::VENDOR),
        version: backend.info(InfoKey::VERSION),
        build: backend.info(InfoKey::BUILD),
        library: backend.library().map(ToOwned::to_owned),
        door: backend.door().to_string(),
        sha256: backend.sha256().to_owned(),
        opset: backend.info(InfoKey::OPSET),
        profiles: profiles.split(',').filter(|p| !p.is_empty()).map(str::to_owned).collect(),
        score: backend.probe(),
        score_reason: backend.info(InfoKey::PROBE_REASON),
        devices: devices_of(backend)?,
    })
}

fn info(args: &BackendsInfoArgs) -> anyhow::Result<()> {
    let backend = Search::new(&args.list.search)?.one(&args.backend)?;
    let described = describe(&backend)?;
    if args.list.json {
        return Ok(ui::json(&described)?);
    }
    let Described {
        id,
        name,
        vendor,
        version,
        build,
        door,
        sha256,
        opset,
        score,
        score_reason,
        ..
    } = &described;
    let library = described.library.as_ref().map_or("built in".into(), |l| l.display().to_string());
    let score = format!("{score} {score_reason}");
    let profiles = described.profiles.join(", ");
    let rows = [
        ("id", id),
        ("name", name),
        ("vendor", vendor),
        ("version", version),
        ("build", build),
        ("library", &library),
        ("door", door),
        ("sha256", sha256),
        ("opset", opset),
        ("profiles", &profiles),
        ("score", &score),
    ];
    for (key, value) in rows {
        if !value.is_empty() {
            ui::line(format_args!("{key:<10}{value}"))?;
        }
    }
    ui::line(format_args!("\n{}", device_table(&described.devices)))?;
    Ok(())
}

pub(super) fn devices(command: &DevicesCommand) -> anyhow::Result<()> {
    let search = Search::new(&command.list.search)?;
    let mut devices = Vec::new();
    for loaded in search.all() {
        match loaded {
            Ok(backend) => match devices_of(&backend) {
                Ok(found) => devices.extend(found),
                // A driver that is missing takes nothing from the other backends.
                Err(error) => tracing::warn!("{}: {error:#}", backend.id()),
            },
            Err(error) => tracing::warn!("{:#}", anyhow::Error::from(error)),
        }
    }
    if command.list.json {
        return Ok(ui::json(&devices)?);
    }
    Ok(ui::line(format_args!("{}", device_table(&devices)))?)
}

fn devices_of(backend: &Backend) -> anyhow::Result<Vec<DescribedDevice>> {
    let count = backend.device_count().context("the backend cannot count its devices")?;
    let describe = |ordinal: u32| {
        let name = format!("{}:{ordinal}", backend.id());
        match backend.open(ordinal, &[]) {
            Ok(device) => DescribedDevice {
                device: name,
                name: device.info(InfoKey::NAME),
                arch: device.info(InfoKey::ARCH),
                driver: device.info(InfoKey::DRIVER),
                memory_bytes: device.property(PropKey::TOTAL_MEMORY),
                compute_units: device.property(PropKey::COMPUTE_UNITS),
                telemetry: device
                    .telemetry()
                    .iter()
                    .map(|m| (m.key.to_string(), m.value))
                    .collect(),
                error: None,
            },
            Err(error) => DescribedDevice {
                device: name,
                name: String::new(),
                arch: String::new(),
                driver: String::new(),
                memory_bytes: None,
                compute_units: None,
                telemetry: BTreeMap::new(),
                error: Some(error.to_string()),
            },
        }
    };
    Ok((0..count).map(describe).collect())
}

fn device_table(devices: &[DescribedDevice]) -> String {
    let cells = |device: &DescribedDevice| {
        let memory = device.memory_bytes.map_or("-".into(), ui::bytes);
        let units = device.compute_units.map_or("-".into(), |units| units.to_string());
        let name = device.error.clone().unwrap_or_else(|| device.name.clone());
        vec![device.device.clone(), memory, units, device.arch.clone(), now(device), name]
    };
    let rows: Vec<Vec<String>> = devices.iter().map(cells).collect();
    ui::table(&["DEVICE", "MEMORY", "UNITS", "ARCH", "NOW", "NAME"], &rows)
}

/// What a device measures, as far as it does: `1.2 GiB used, 3 % busy, 41 °C, 76 W`.
fn now(device: &DescribedDevice) -> String {
    let of = |key: MetricKey| device.telemetry.get(&key.to_string()).copied();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole bytes")]
    let used = of(MetricKey::MEM_USED).map(|bytes| format!("{} used", ui::bytes(bytes as u64)));
    let parts = [
        used,
        of(MetricKey::UTIL_PCT).map(|percent| format!("{percent:.0} % busy")),
        of(MetricKey::TEMP_C).map(|celsius| format!("{celsius:.0} °C")),
        of(MetricKey::POWER_MW).map(|milliwatts| format!("{:.0} W", milliwatts / 1e3)),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "-".into() } else { parts.join(", ") }
}
