//! Captured work.

use cudarc::driver::{
    result::{graph, stream},
    sys::{CUgraph, CUgraphExec, CUgraphInstantiate_flags, CUstreamCaptureMode},
};
use halyard_sdk::{Code, Error, Result};

use super::{error::Named, stream::Stream};

/// A captured sequence of work, ready to be replayed.
#[derive(Debug)]
pub(crate) struct Graph {
    graph: CUgraph,
    exec: CUgraphExec,
}

// SAFETY: both are names that the driver takes from any thread; replays of one graph are serialised by the device's table.
unsafe impl Send for Graph {}
// SAFETY: as above.
unsafe impl Sync for Graph {}

impl Graph {
    /// What is enqueued on the stream from now on is kept instead of done.
    pub(crate) fn begin(on: &Stream) -> Result<()> {
        // Other threads go on with calls that a stricter mode would refuse meanwhile.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives as long as `on`.
        unsafe { stream::begin_capture(on.raw(), mode) }.named("cuStreamBeginCapture")
    }

    /// Ends what [`Self::begin`] began.
    pub(crate) fn end(on: &Stream) -> Result<Self> {
        // SAFETY: the stream lives as long as `on`.
        let graph = unsafe { stream::end_capture(on.raw()) }.named("cuStreamEndCapture")?;
        if graph.is_null() {
            return Err(Error::new(Code::INTERNAL, "cuStreamEndCapture: the capture is void"));
        }
        let flags = CUgraphInstantiate_flags(0);
        // SAFETY: the graph is the one that just came.
        match unsafe { graph::instantiate(graph, flags) }.named("cuGraphInstantiate") {
            Ok(exec) => Ok(Self { graph, exec }),
            Err(error) => {
                // SAFETY: nobody else has it.
                let _ = unsafe { graph::destroy(graph) };
                Err(error)
            }
        }
    }

    /// Enqueues all of it.
    pub(crate) fn launch(&self, on: &Stream) -> Result<()> {
        // SAFETY: both live as long as these.
        unsafe { graph::launch(self.exec, on.raw()) }.named("cuGraphLaunch")
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: nothing uses them after this.
        let exec = unsafe { graph::exec_destroy(self.exec) };
        // SAFETY: as above.
        let graph = unsafe { graph::destroy(self.graph) };
        if let Err(error) = exec.and(graph) {
            tracing::debug!(?error, "a graph of a device that failed");
        }
    }
}
