//! Graphs.

use super::Out;
use super::stream::here;
use crate::driver::Driver;
use std::ffi::c_ulonglong;

entries! {
    fn cuGraphInstantiateWithFlags(executable: Out<usize>, graph: usize, _flags: c_ulonglong) {
        let driver = Driver::get()?;
        executable.set(driver.graphs.add(driver.graphs.get(graph)?))
    }

    fn cuGraphUpload(executable: usize, stream: usize) {
        let (driver, ..) = here(stream)?;
        driver.graphs.get(executable).map(|_| ())
    }

    fn cuGraphLaunch(executable: usize, stream: usize) {
        let (driver, _, stream) = here(stream)?;
        let graph = driver.graphs.get(executable)?;
        graph.work.iter().try_for_each(|work| stream.enqueue(driver, work.clone()))
    }

    fn cuGraphExecDestroy(executable: usize) {
        Driver::get()?.graphs.remove(executable).map(|_| ())
    }

    fn cuGraphDestroy(graph: usize) {
        Driver::get()?.graphs.remove(graph).map(|_| ())
    }
}
