from unlearn_metrics.cli import main

main()
