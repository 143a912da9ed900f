//! Who waits, who does not, and in which order they go on.

use crate::stage::Stage;
use anyhow::Result;
use e2e::site::VERSIONS;

#[tokio::test]
async fn who_comes_while_nobody_is_up_goes_on_in_order_when_somebody_is() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::of(
            e2e::site::Site::new(version).await?.workers(1),
            e2e::farm::Farm::start(1).await?,
            "",
            "",
        )
        .await?;
        stage.goes().await?;
        let visits = stage.line_up(10).await?;
        assert!(stage.farm.arrivals().await?.is_empty());
        stage.comes_back().await?;
        for visit in visits {
            assert_eq!(visit.await??.status, 200);
        }
        let arrived: Vec<String> = stage.farm.arrivals().await?.into_iter().map(|at| at.path).collect();
        let order: Vec<String> = (0..10).map(|number| format!("/{number}")).collect();
        assert_eq!(arrived, order);
        assert_eq!(stage.counts().await?, (0, [10, 0, 0, 0, 0]));
        for line in stage.log(10).await? {
            eprintln!("{line}");
        }
        stage.end().await?;
    }
    Ok(())
}
