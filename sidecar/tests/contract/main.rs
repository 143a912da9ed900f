//! What the sidecar takes for granted of PM2, checked against the real ones: PM2 5, 6 and 7, on Node 18, 20 and 22.
//!
//! Without `--include-ignored`, every PM2 is checked on Node 20, and PM2 7 on every Node.

#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod bus;
mod ecosystem;
mod orders;
mod pm2;
mod rpc;
#[path = "../../src/scratch.rs"]
mod scratch;
mod tap;

use std::time::Duration;
use tokio::time::timeout;

/// A test that waits for what never comes fails instead.
async fn limit(test: impl Future<Output = ()>) {
    timeout(Duration::from_secs(60), test).await.expect("what was waited for did not come");
}

macro_rules! contract {
    ($($(#[$attribute:meta])* $name:ident: $package:literal $version:literal on $node:literal;)*) => {
        mod real_pm2 {
            use crate::{bus, ecosystem, limit, orders, pm2::{Cell, Pm2}, rpc};
            $(mod $name {
                use super::*;

                fn start() -> Pm2 {
                    Pm2::start(Cell { package: $package, version: $version, node: $node })
                }

                #[tokio::test(flavor = "multi_thread")]
                $(#[$attribute])*
                async fn the_bus_tells_of_a_stop_before_the_signal() {
                    limit(bus::tells_of_a_stop_before_the_signal(&start())).await;
                }

                #[tokio::test(flavor = "multi_thread")]
                $(#[$attribute])*
                async fn in_cluster_mode_the_old_process_is_stopped_under_another_name() {
                    limit(bus::names_the_old_process_otherwise_in_cluster_mode(&start())).await;
                }

                #[tokio::test(flavor = "multi_thread")]
                $(#[$attribute])*
                async fn a_broken_build_is_not_told_of_in_the_answer() {
                    limit(rpc::does_not_tell_of_a_broken_build(&start())).await;
                }

                #[tokio::test(flavor = "multi_thread")]
                $(#[$attribute])*
                async fn a_stop_before_ready_holds_but_on_pm2_7() {
                    limit(rpc::stops_what_is_not_ready(&start())).await;
                }

                #[tokio::test(flavor = "multi_thread")]
                $(#[$attribute])*
                async fn what_is_frozen_until_listen_timeout_can_be_stopped() {
                    limit(rpc::stops_what_was_frozen(&start())).await;
                }

                #[tokio::test(flavor = "multi_thread")]
                $(#[$attribute])*
                async fn in_cluster_mode_what_is_frozen_before_it_is_online_waits_to_go_on() {
                    limit(rpc::waits_for_what_was_frozen_too_early(&start())).await;
                }

                #[tokio::test(flavor = "multi_thread")]
                $(#[$attribute])*
                async fn a_second_reload_is_refused_on_pm2_7_alone() {
                    limit(rpc::refuses_a_second_reload(&start())).await;
                }

                #[tokio::test(flavor = "multi_thread")]
                $(#[$attribute])*
                async fn questions_and_orders_are_answered() {
                    limit(rpc::answers(&start())).await;
                }

                #[tokio::test(flavor = "multi_thread")]
                $(#[$attribute])*
                async fn a_daemon_that_dies_in_the_middle_of_an_order_is_noticed() {
                    limit(rpc::notices_a_death(&start())).await;
                }

                #[tokio::test(flavor = "multi_thread")]
                $(#[$attribute])*
                async fn orders_are_what_the_command_line_sends() {
                    limit(orders::are_what_the_command_line_sends(&start())).await;
                }

                #[tokio::test(flavor = "multi_thread")]
                $(#[$attribute])*
                async fn a_file_changes_every_worker_and_none_of_their_ports() {
                    limit(orders::change_every_worker_and_none_of_their_ports(&start())).await;
                }

                #[tokio::test(flavor = "multi_thread")]
                $(#[$attribute])*
                async fn an_ecosystem_file_is_read_as_pm2_reads_it() {
                    limit(ecosystem::is_read_as_pm2_reads_it(&start())).await;
                }

                #[tokio::test(flavor = "multi_thread")]
                $(#[$attribute])*
                async fn asking_for_orders_changes_nothing_and_says_what_is_wrong() {
                    limit(orders::change_nothing_and_say_what_is_wrong(&start())).await;
                }
            })*
        }
    };
}

contract! {
    #[ignore = "the full matrix"]
    pm2_5_on_node_18: "pm2-5" "5.4.3" on "18";
    pm2_5_on_node_20: "pm2-5" "5.4.3" on "20";
    #[ignore = "the full matrix"]
    pm2_5_on_node_22: "pm2-5" "5.4.3" on "22";
    #[ignore = "the full matrix"]
    pm2_6_on_node_18: "pm2-6" "6.0.14" on "18";
    pm2_6_on_node_20: "pm2-6" "6.0.14" on "20";
    #[ignore = "the full matrix"]
    pm2_6_on_node_22: "pm2-6" "6.0.14" on "22";
    pm2_7_on_node_18: "pm2" "7.0.4" on "18";
    pm2_7_on_node_20: "pm2" "7.0.4" on "20";
    pm2_7_on_node_22: "pm2" "7.0.4" on "22";
}
