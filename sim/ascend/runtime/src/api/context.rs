//! Contexts.

use super::Out;
use crate::code::{Code, Failure};
use crate::runtime::{Context, current_context, runtime, set_current_context};
use std::sync::Arc;

entries! { ENTRIES of Acl:
    fn aclrtCreateContext(context: Out<usize>, device: i32) {
        let runtime = runtime()?;
        let device = runtime.device("deviceId", device)?.index;
        let handle = runtime.handles.add(Arc::new(Context { device }));
        context.set("context", handle)?;
        set_current_context(handle);
        Ok(())
    }

    fn aclrtDestroyContext(context: usize) {
        let runtime = runtime()?;
        if runtime.devices.iter().any(|device| device.context.get() == Some(&context)) {
            let text = "argument `context`: the context that aclrtSetDevice made is the device's own";
            return Err(Failure::new(Code::PARAM, text));
        }
        runtime.handles.remove::<Context>("context", context)?;
        if current_context() == context {
            set_current_context(0);
        }
        Ok(())
    }

    fn aclrtSetCurrentContext(context: usize) {
        runtime()?.handles.get::<Context>("context", context)?;
        set_current_context(context);
        Ok(())
    }

    fn aclrtGetCurrentContext(context: Out<usize>) {
        runtime()?;
        match current_context() {
            0 => Err(Failure::unlogged(Code::CONTEXT_NULL)),
            handle => context.set("context", handle),
        }
    }
}
