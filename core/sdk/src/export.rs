//! The module a library exports.

use std::sync::Once;

use halyard_abi::{
    BackendModule, BackendModuleRef, Code, DeviceBox, HostApiRef, InfoKey, KeyValue, R, RResult,
    RSlice, RString,
    exporting::{
        CheckTypeLayout, LibHeader, PrefixTypeTrait, RootModuleResult, call_root_module_loader,
    },
};

use crate::{Backend, Error, Options, guard, log};

/// The module of a backend that is linked into the host: the same objects and guards as through a library.
#[must_use]
pub fn module<B: Backend>() -> BackendModuleRef {
    root::<B, false>()
}

/// The header of a library that holds this backend, for [`export_backend!`](crate::export_backend).
#[doc(hidden)]
#[must_use]
pub const fn lib_header<B: Backend>() -> LibHeader {
    // SAFETY: `construct::<B>` returns a `BackendModuleRef`, erased.
    unsafe { LibHeader::from_constructor::<BackendModuleRef>(construct::<B>, CheckTypeLayout::Yes) }
}

extern "C" fn construct<B: Backend>() -> RootModuleResult {
    call_root_module_loader(root::<B, true>)
}

fn root<B: Backend, const LIBRARY: bool>() -> BackendModuleRef {
    BackendModule {
        info: info::<B>,
        probe: probe::<B>,
        device_count: device_count::<B>,
        open: open::<B, LIBRARY>,
    }
    .leak_into_prefix()
}

pub(crate) extern "C" fn info<B: Backend>(key: InfoKey) -> RString {
    let answer = guard::catch(|| Ok(B::info(key))).unwrap_or_default();
    if !answer.is_empty() {
        return answer.into();
    }
    match key {
        InfoKey::PANIC_STRATEGY if cfg!(panic = "abort") => "abort".into(),
        InfoKey::PANIC_STRATEGY => "unwind".into(),
        InfoKey::OPSET => halyard_abi::module::OPSET.to_string().into(),
        _ => RString::new(),
    }
}

pub(crate) extern "C" fn probe<B: Backend>() -> i32 {
    guard::catch(|| Ok(B::probe())).unwrap_or(-1)
}

pub(crate) extern "C" fn device_count<B: Backend>() -> R<u32> {
    guard::catch(B::device_count).into()
}

pub(crate) extern "C" fn open<B: Backend, const LIBRARY: bool>(
    host: HostApiRef,
    ordinal: u32,
    options: RSlice<'_, KeyValue<'_>>,
) -> R<DeviceBox> {
    // Each library has its own copy of tracing's globals; a built-in backend shares the host's.
    static BRIDGE: Once = Once::new();
    if LIBRARY {
        BRIDGE.call_once(|| log::install(host));
    }
    let pairs = options.iter().map(|o| (o.key.to_string(), o.value.to_string())).collect();
    let opened = guard::catch(|| {
        let count = B::device_count()?;
        if ordinal >= count {
            return Err(Error::new(
                Code::INVALID_ARGUMENT,
                format!("there is no device {ordinal}: {count} present"),
            ));
        }
        B::open(ordinal, Options::new(pairs))
    });
    match opened {
        Ok(device) => RResult::ROk(guard::device(device)),
        Err(error) => RResult::RErr(error),
    }
}

/// Exports a [`Backend`](crate::Backend) from a `cdylib`.
#[macro_export]
macro_rules! export_backend {
    ($backend:ty) => {
        #[doc(hidden)]
        #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
        pub static HALYARD_LIB_HEADER: $crate::__private::LibHeader =
            $crate::__private::lib_header::<$backend>();
    };
}

#[cfg(test)]
mod tests {
    /// The attribute in `export_backend!` takes a literal only: this is the name that hosts look up.
    #[test]
    fn the_exported_symbol_is_the_one_hosts_look_up() {
        let name = halyard_abi::loading::ROOT_MODULE_LOADER_NAME_WITH_NUL.trim_end_matches('\0');
        assert_eq!(name, "_1as_0lib_1header_0root_bmodule_bloader");
    }
}
