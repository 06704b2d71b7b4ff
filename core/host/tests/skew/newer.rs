//! A newer version: everything that may grow has grown by one.

use super::version::{
    Edit::{self, Replace},
    Version,
};

pub(crate) const VERSION: Version =
    Version { name: "newer", edits: &[CATALOGUE, TRAITS, MODULE, HOST] };

/// An op, and an attribute with a revision.
const CATALOGUE: &[Edit<'static>] = &[
    Replace(
        "core/abi/src/ids.rs",
        "SAMPLE = 30 => \"sample\",",
        "SAMPLE = 30 => \"sample\",
        /// Of the newer version.
        NEWER = 31 => \"newer\",",
    ),
    Replace(
        "core/abi/src/ids.rs",
        "COMM = 26 => \"comm\",",
        "COMM = 26 => \"comm\",
        /// Of the newer version.
        NEWER = 27 => \"newer\",",
    ),
    Replace(
        "core/abi/src/ops/attrs.rs",
        "alpha: f64 = ALPHA or 1.0,",
        "alpha: f64 = ALPHA or 1.0,
        /// Of the newer version.
        newer: f64 = NEWER or 0.0; since 2,",
    ),
    Replace(
        "core/abi/src/ops/attrs.rs",
        "    /// [`OpKind::QKV_POST`].\n",
        "    /// Of the newer version.
    Newer = NEWER {}
    /// [`OpKind::QKV_POST`].\n",
    ),
    Replace(
        "core/abi/src/ops/catalogue.rs",
        "pub const ADD: OpSchema = OpSchema {",
        "pub const ADD: OpSchema = OpSchema {
    revision: 2,",
    ),
    Replace(
        "core/abi/src/ops/catalogue.rs",
        "    SAMPLE,\n    QKV_POST,",
        "    SAMPLE,\n    OpSchema { kind: OpKind::NEWER, ..MUL },\n    QKV_POST,",
    ),
];

/// A method at the end of each trait.
const TRAITS: &[Edit<'static>] = &[
    Replace(
        "core/abi/src/traits.rs",
        "let refused = unsupported(\"plan_update\");\n        refused\n    }\n",
        "let refused = unsupported(\"plan_update\");\n        refused\n    }\n    /// Of the newer version.
    fn newer(&self) -> R<u64> {\n        let refused = unsupported(\"newer\");\n        refused\n    }\n",
    ),
    Replace(
        "core/abi/src/traits.rs",
        "let refused = unsupported(\"split\");\n        refused\n    }\n",
        "let refused = unsupported(\"split\");\n        refused\n    }\n    /// Of the newer version.
    fn newer(&self) -> R<u64> {\n        let refused = unsupported(\"newer\");\n        refused\n    }\n",
    ),
    Replace(
        "core/abi/src/traits.rs",
        "let refused = unsupported(\"vendor_call\");\n        refused\n    }\n",
        "let refused = unsupported(\"vendor_call\");\n        refused\n    }\n    /// Of the newer version.
    fn newer(&self) -> R<u64> {\n        let refused = unsupported(\"newer\");\n        refused\n    }\n",
    ),
    Replace(
        "core/sdk/src/guard.rs",
        "    fn vendor_call(",
        "    fn newer(&self) -> R<u64> {\n        RResult::ROk(7)\n    }\n    fn vendor_call(",
    ),
];

/// A field at the end of both modules; the backend calls the host's if it is there.
const MODULE: &[Edit<'static>] = &[
    Replace(
        "core/abi/src/module.rs",
        "        fields_json: RStr<'_>,\n    ),\n",
        "        fields_json: RStr<'_>,\n    ),\n    /// Of the newer version.\n    pub newer: extern \"C\" fn() -> u32,\n",
    ),
    Replace(
        "core/abi/src/module.rs",
        "-> R<DeviceBox>,\n",
        "-> R<DeviceBox>,\n    /// Of the newer version.\n    pub newer: extern \"C\" fn(u32) -> u32,\n",
    ),
    Replace(
        "core/sdk/src/export.rs",
        "open: open::<B, LIBRARY>,",
        "open: open::<B, LIBRARY>,\n        newer,",
    ),
    Replace(
        "core/sdk/src/export.rs",
        "pub(crate) extern \"C\" fn probe<",
        "extern \"C\" fn newer(number: u32) -> u32 {\n    number * 2\n}\n\npub(crate) extern \"C\" fn probe<",
    ),
    Replace(
        "core/sdk/src/export.rs",
        "    let pairs = ",
        "    if let Some(newer) = host.newer() {\n        assert_eq!(newer(), 5, \"the host's answer\");\n    }\n    let pairs = ",
    ),
    Replace(
        "core/sdk/src/export_c.rs",
        "HostApi { ctx, log_enabled, log }",
        "HostApi { ctx, log_enabled, log, newer: unreachable }",
    ),
    Replace(
        "core/sdk/src/export_c.rs",
        "fn text(text: RStr<'_>)",
        "extern \"C\" fn unreachable() -> u32 {\n    0\n}\n\nfn text(text: RStr<'_>)",
    ),
];

/// A host that uses all of it.
const HOST: &[Edit<'static>] = &[
    Replace("core/host/src/host_log.rs", "log: rust_log }", "log: rust_log, newer }"),
    Replace(
        "core/host/src/host_log.rs",
        "extern \"C\" fn rust_log_enabled(",
        "extern \"C\" fn newer() -> u32 {\n    5\n}\n\nextern \"C\" fn rust_log_enabled(",
    ),
    Replace(
        "core/host/src/module.rs",
        "Self::Rust(module) => module.probe()(),",
        "Self::Rust(module) => {
                module.probe()() + module.newer().map_or(0, |f| f(21).cast_signed())
            }",
    ),
    Replace(
        "core/host/src/device.rs",
        "    /// Prepares a kernel; may take seconds.\n",
        "    /// Of the newer version.
    pub fn newer(&self) -> std::result::Result<u64, halyard_abi::AbiError> {
        self.inner.raw.newer().into_result()
    }

    /// Prepares a kernel; may take seconds.\n",
    ),
    Replace(
        "plugin/src/main.rs",
        "    // A newer host goes on.\n",
        "    let device = backend.open(0, &[]).unwrap();
    match device.newer() {
        Ok(number) => println!(\"newer method: {number}\"),
        Err(error) => println!(\"newer method: {error}\"),
    }
    let spec = halyard_core::TensorSpec::new(halyard_core::DType::F32, &[-1]);
    let prepare = |attrs: &halyard_core::attrs::Add| {
        let op = halyard_core::OpBuf::new(attrs, [spec; 3], []);
        device.prepare(op).map_or_else(|e| e.to_string(), |_| \"Ok\".into())
    };
    let unknown = halyard_core::OpBuf::new(&halyard_core::attrs::Newer {}, [spec; 3], []);
    match device.support(&unknown) {
        halyard_core::Support::No(why) => println!(\"newer op: {why}\"),
        other => println!(\"newer op: {other:?}\"),
    }
    println!(\"newer attribute at its default: {}\", prepare(&Default::default()));
    let attrs = halyard_core::attrs::Add { newer: 1.0, ..Default::default() };
    println!(\"newer attribute: {}\", prepare(&attrs));
",
    ),
];
