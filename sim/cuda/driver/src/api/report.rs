//! What the simulator counted, for tests and tools: functions that no real driver has.

use super::{In, Out};
use crate::driver::{Driver, choose};
use halyard_sim_cuda_exec::{Class, Counters, Profile, Roofline};
use std::ffi::c_char;
use std::sync::PoisonError;

entries! {
    /* Chooses the devices as HALYARD_SIM_CUDA_DEVICES does; before cuInit. */
    fn halyard_sim_cuda_devices(names: In<c_char>) {
        choose(names.text()?)
    }

    /* Writes the counters of every kernel so far as JSON, cut to `capacity` bytes with a zero at the end; `bytes` gets
       the length of the whole text. */
    fn halyard_sim_cuda_counters(text: Out<c_char>, capacity: usize, bytes: Out<usize>) {
        let driver = Driver::get()?;
        let totals = driver.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let kernels: Vec<_> = totals.iter().map(|(name, (launches, counted))| json(name, *launches, counted)).collect();
        let whole = format!("{{{}}}", kernels.join(", "));
        bytes.set(whole.len())?;
        if capacity == 0 {
            return Ok(());
        }
        let mut cut: Vec<c_char> = whole.bytes().take(capacity - 1).map(u8::cast_signed).collect();
        cut.push(0);
        text.set_all(&cut)
    }

    /* Sets the counters of every kernel to nothing. */
    fn halyard_sim_cuda_counters_reset() {
        Driver::get()?.totals.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }
}

fn json(name: &str, launches: u64, counted: &Counters) -> String {
    let classes =
        Class::ALL.map(|class| format!("\"{class:?}\": {}", counted.of(class))).join(", ");
    let rest = [
        ("blocks", counted.blocks),
        ("thread_instructions", counted.thread_instructions),
        ("tensor_ops", counted.tensor_ops),
        ("tensor_ops_fp8", counted.tensor_ops_fp8),
        ("tensor_ops_int8", counted.tensor_ops_int8),
        ("read_sectors", counted.read_sectors),
        ("written_sectors", counted.written_sectors),
        ("unique_read_sectors", counted.unique_read_sectors),
        ("unique_written_sectors", counted.unique_written_sectors),
        ("shared_passes", counted.shared_passes),
        ("shared_ideal_passes", counted.shared_ideal_passes),
        ("worst_bank_conflict", counted.worst_bank_conflict),
    ];
    let rest = rest.map(|(name, count)| format!("\"{name}\": {count}")).join(", ");
    // A kernel's name is an identifier: nothing in it needs escaping.
    let roofs = roofs(launches, counted);
    format!(
        "\"{name}\": {{\"launches\": {launches}, \"instructions\": {{{classes}}}, {rest}, \"roofline_seconds\": {{{roofs}}}}}"
    )
}

/// The least time of an average launch on each device that has what it used.
fn roofs(launches: u64, counted: &Counters) -> String {
    let able = |profile: &&Profile| counted.tensor_ops_fp8 == 0 || profile.tensor_fp8_rate > 0.0;
    let roofs = Profile::ALL.iter().filter(able).map(|profile| {
        // Rates divide sums: the average of the launches' times, if their blocks fill the device alike.
        let mut average = *counted;
        average.blocks = counted.blocks.div_ceil(launches.max(1));
        let seconds = Roofline::of(profile, &average).seconds() / launches.max(1) as f64;
        format!("\"{}\": {seconds:e}", profile.name)
    });
    roofs.collect::<Vec<_>>().join(", ")
}
