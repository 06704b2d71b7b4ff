//! An older version: without what came after each trait's prefix.

use super::version::{
    Edit::{self, Remove, Replace},
    Version,
};

pub(crate) const VERSION: Version = Version { name: "older", edits: EDITS };

const TRAITS: &str = "core/abi/src/traits.rs";
const GUARD: &str = "core/sdk/src/guard.rs";
const GRAPH: &str = "core/host/src/graph.rs";
const C_DEVICE: &str = "core/host/src/c_door/device.rs";

/// Methods of `Device` after the prefix, and of `Kernel`.
macro_rules! without {
    ($($method:literal),*) => {
        &[$(Remove(TRAITS, $method), Remove(GUARD, $method), Remove(C_DEVICE, $method)),*]
    };
}

const EDITS: &[&[Edit<'static>]] = &[
    without!(
        "notify",
        "graph_begin",
        "graph_end",
        "graph_launch",
        "graph_destroy",
        "vendor_call",
        "plan",
        "plan_free",
        "plan_update"
    ),
    &[
        Remove(TRAITS, "split"),
        Remove(GUARD, "split"),
        Remove("core/host/src/c_door/collective.rs", "split"),
        // The C door's export calls them all; this backend has the Rust door.
        Replace("core/sdk/src/lib.rs", "mod export_c;\n", ""),
        Replace("core/sdk/src/lib.rs", ", export_c::entry as c_entry", ""),
        Replace("plugin/src/lib.rs", "halyard_sdk::export_c!(Good);\n", ""),
        Replace(
            "core/host/src/launch.rs",
            "self.kernel.inner.raw.plan(stream.raw, args).named(\"plan\")",
            "Ok(halyard_abi::Plan::NONE)",
        ),
        Replace(
            "core/host/src/launch.rs",
            "self.kernel.inner.raw.plan_update(stream.raw, plan.raw, args).named(\"plan_update\")",
            "Ok(())",
        ),
        Replace(GRAPH, "stream.device.raw.graph_begin(stream.raw).named(\"graph_begin\")?;", ""),
        Replace(
            GRAPH,
            "device.raw.graph_end(*raw).named(\"graph_end\")",
            "Err(unsupported(\"graph_end\", format!(\"{raw:?}\")))",
        ),
        Replace(
            GRAPH,
            "self.device.raw.graph_launch(self.raw, stream.raw).named(\"graph_launch\")",
            "Ok(())",
        ),
        Replace(
            GRAPH,
            "self.device.raw.graph_destroy(self.raw).named(\"graph_destroy\")",
            "Ok::<(), DeviceError>(())",
        ),
        Replace("core/host/src/kernel.rs", "self.kernel.raw.plan_free(self.raw);", ""),
        Replace(
            "core/host/src/comm.rs",
            "let raw = self.shared.raw.split(color, key).named(\"split\")?;",
            "let raw: CollectiveBox = unimplemented!(\"{color} {key}\");",
        ),
    ],
];
